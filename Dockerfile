# The server as an image: TorchServe, one archive built inside, nobody's root. `make image` builds it; docs/serving.md
# says how to run it.

# Any Debian or Ubuntu with python3 ≥ 3.11, its venv module, ca-certificates and useradd.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /opt/convlens
COPY requirements requirements
# The pins, in an environment of its own. A pip configuration (mirrors, certificates) comes from outside as a secret, so
# none of it is left in the image. Links, not copies, so that the environment follows the base image's Python.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=pip_ca,target=/run/secrets/pip_ca \
    python3 -m venv venv \
    && venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
       -r requirements/runtime.txt -r requirements/serve.txt -r requirements/onnx.txt
COPY pyproject.toml README.md LICENSE config.properties ./
COPY convlens convlens
COPY export export
COPY handlers handlers
# Editable: config.properties, the metrics and the log format stay where the code looks for them, beside it.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=pip_ca,target=/run/secrets/pip_ca \
    venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --editable . \
    && venv/bin/python -m compileall -q convlens handlers
ARG MODEL=packaged:efficientnet_lite0
ARG NAME=convlens
# here: one entry answers everything; apart: NAME_sweep answers what is heavy, so that predictions never wait for it.
ARG SWEEPS=apart
# What only building needs goes again. Tokens live as long as the server: nobody renews them inside a container.
RUN OMP_WAIT_POLICY=PASSIVE venv/bin/convlens archive --model "${MODEL}" --name "${NAME}" --sweeps "${SWEEPS}" --store . \
    && mv "${NAME}.mar" model.mar \
    && sed 's/^token_expiration_min=.*/token_expiration_min=5256000/' config.properties > container.properties \
    && venv/bin/python -m pip uninstall --yes --quiet onnx onnxscript onnx-ir pip \
    && rm -rf .convlens build requirements /tmp/* /root/.cache

FROM ${BASE_IMAGE}
# Numbers, not names: Kubernetes can only tell from a number that this is not root.
RUN groupadd --gid 10001 convlens \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin convlens \
    && install -d -o 10001 -g 10001 -m 0700 /run/convlens
COPY --from=build /opt/convlens /opt/convlens
ARG NAME=convlens
# HOST: from outside this container, inference and metrics must be reachable; management never is, whatever this says.
# NVIDIA_*: TorchServe counts the GPUs by nvidia-smi, which the container runtime brings only as "utility".
ENV PATH=/opt/convlens/venv/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CONVLENS_NAME=${NAME} \
    CONVLENS_HOST=0.0.0.0 \
    CONVLENS_RUN_DIR=/run/convlens \
    CONVLENS_DRAIN_S=120
USER 10001:10001
# Written here and in /tmp, nowhere else: the tokens (key_file.json), the configuration in force, the logs.
WORKDIR /run/convlens
VOLUME /run/convlens
EXPOSE 8080 7070 8082
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --retries=4 \
    CMD python -m convlens.torchserve.health --model "$CONVLENS_NAME" --key-file "$CONVLENS_RUN_DIR/key_file.json"
ENTRYPOINT ["python", "-m", "convlens.torchserve.container", "--config", "/opt/convlens/container.properties"]
CMD ["/opt/convlens/model.mar"]
