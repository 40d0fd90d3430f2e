# The server as an image: TorchServe with one archive, built inside, as a user without root rights. `make image` builds
# it; docs/serving.md describes how to run it.

# Any Debian or Ubuntu with python3 ≥ 3.11, its venv module, ca-certificates and useradd.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /opt/convlens
COPY requirements requirements
COPY scripts/check_torch.py ./
# cuda: everything, on a GPU where there is one. cpu: no CUDA. onnx: exported graphs alone, by ONNX Runtime with CUDA, and
# torch without it. For the last two pip's configuration names an index that has torch's CPU wheels.
ARG VARIANT=cuda
# Further packages at their pins, such as ray[serve] for deploy/kuberay.
ARG PACKAGES=
# The pinned requirements, in a virtual environment. A pip configuration (mirrors, certificates) is mounted as a secret,
# so that none of it stays in the image. The environment links to the base image's Python instead of copying it. Torch
# comes first and alone: where it is the wrong one, the build ends before CUDA's libraries are fetched.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=pip_ca,target=/run/secrets/pip_ca \
    case "${VARIANT}" in cuda|cpu|onnx) ;; *) echo "error: VARIANT=${VARIANT}: one of cuda, cpu, onnx" >&2; exit 2;; esac \
    && python3 -m venv venv \
    && venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
       --no-deps --constraint requirements/constraints.txt torch \
    && venv/bin/python check_torch.py "${VARIANT}" \
    && venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
       -r "requirements/image-${VARIANT}.txt" ${PACKAGES} \
    && venv/bin/python check_torch.py "${VARIANT}"
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
# here: one entry for all requests; apart: NAME_sweep takes heavy requests, so that predictions never wait for them.
ARG SWEEPS=apart
# What no server imports is removed, and of torch its headers and all programs but one; what is left must still load.
# Tokens are valid as long as the server runs: nobody renews them inside a container.
RUN runtime=torch unused=image-unused.txt \
    && if [ "${VARIANT}" = onnx ]; then runtime=onnx unused=image-unused-onnx.txt; fi \
    && OMP_WAIT_POLICY=PASSIVE venv/bin/convlens archive --model "${MODEL}" --name "${NAME}" --sweeps "${SWEEPS}" \
       --runtime "${runtime}" --store . \
    && mv "${NAME}.mar" model.mar \
    && sed 's/^token_expiration_min=.*/token_expiration_min=5256000/' config.properties > container.properties \
    && venv/bin/python -m pip uninstall --yes --quiet --requirement "requirements/${unused}" \
    && (cd venv/lib/python3*/site-packages && rm -rf torch/include sympy/*/tests networkx/*/tests \
        && find torch/bin -mindepth 1 -maxdepth 1 ! -name torch_shm_manager -exec rm -r {} +) \
    && venv/bin/python -c 'import convlens.serving.handler, convlens.torchserve.container' \
    && rm -rf .convlens build requirements check_torch.py /tmp/* /root/.cache

FROM ${BASE_IMAGE}
# Numbers, not names: from a number Kubernetes can see that the user is not root.
RUN groupadd --gid 10001 convlens \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin convlens \
    && install -d -o 10001 -g 10001 -m 0700 /run/convlens
COPY --from=build /opt/convlens /opt/convlens
ARG NAME=convlens
# HOST: inference and metrics must be reachable from outside the container; management never is, whatever HOST is.
# NVIDIA_*: TorchServe counts GPUs with nvidia-smi, which the container runtime provides only as "utility".
ENV PATH=/opt/convlens/venv/bin:$PATH \
    HOME=/tmp \
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
# Only this folder (tokens in key_file.json, configuration in force, logs) and /tmp are written.
WORKDIR /run/convlens
VOLUME /run/convlens
EXPOSE 8080 7070 8082
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --retries=4 \
    CMD python -m convlens.torchserve.health --model "$CONVLENS_NAME" --key-file "$CONVLENS_RUN_DIR/key_file.json"
ENTRYPOINT ["python", "-m", "convlens.torchserve.container", "--config", "/opt/convlens/container.properties"]
CMD ["/opt/convlens/model.mar"]
