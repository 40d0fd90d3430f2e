"""A service on Ray Serve: deployed to a cluster, or to one of this machine alone, and removed without remains."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from convlens import __version__
from convlens.client.run_dir import ServerRecord, remove_record
from convlens.errors import ServerError
from convlens.rayserve.archives import served_entries
from convlens.rayserve.config import IMPORT_PATH, MESSAGE_BYTES, ServeArgs, roles_of
from convlens.rayserve.tokens import write_key_file
from convlens.types import no_op

LOOPBACK = "127.0.0.1"
CONFIG_FILE = "serve.yaml"  # in a run folder: what is deployed, without any token
_SOCKET_PATH_BYTES = 107  # Linux's limit for a unix socket's path
_SESSION = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # what Ray puts below its folder
_CONNECT_S, _POLL_S = 5.0, 0.2
_OBJECT_STORE_BYTES = 300_000_000  # requests and replies on their way; the default is a third of the memory
# Nothing is reported to anybody, and replies of several maps pass over gRPC. The last three halve what a prediction
# takes on its way (benchmarks/scale.py): the proxy asks the ingress over gRPC, from one thread, and sends the body with
# the request.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MESSAGE_BYTES),
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MESSAGE_BYTES),
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "convlens.rayserve.upload:middlewares",
}
# A cluster of this machine alone stays on its loopback address, as far as Ray can: by itself it takes 127.0.0.1 for the
# machine's address to others, and listens on all of them.
_LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class RayServer:
    """A service that runs. ``run_dir`` keeps its configuration and, while it runs, its token and the record of its
    addresses; ``address`` is the cluster's, to connect to by ray.init.
    """

    models: tuple[str, ...]
    port: int
    grpc_port: int
    run_dir: Path
    auth: bool
    address: str = ""
    host: str = LOOPBACK

    @property
    def inference_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def metrics_url(self) -> str:
        return self.inference_url

    @property
    def grpc_address(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def key_file(self) -> Path:
        return self.run_dir / "key_file.json"

    @property
    def record(self) -> ServerRecord:
        """For clients in this folder. Ray Serve has no management interface of its own here."""
        return ServerRecord(
            rest=self.inference_url,
            grpc=self.grpc_address,
            metrics=self.metrics_url,
            management="",
            management_grpc="",
            models=self.models,
            auth=self.auth,
            version=__version__,
        )

    def token(self, kind: str = "inference") -> str:
        """The bearer token, read anew each time. A secret: never log it. Raises ServerError."""
        try:
            return str(json.loads(self.key_file.read_text(encoding="utf-8"))[kind]["key"])
        except (OSError, ValueError, KeyError) as error:
            raise ServerError(f"no {kind} token in {self.key_file}; does the service run, with auth=True?") from error

    def headers(self, kind: str = "inference") -> dict[str, str]:
        """The headers a request needs: none when no token is asked for."""
        return {"Authorization": f"Bearer {self.token(kind)}"} if self.auth else {}


@contextmanager
def running(
    described: Mapping[str, Any],
    *,
    run_dir: Path,
    auth: bool = True,
    address: str = "local",
    timeout_s: float = 180.0,
    probe: Callable[[RayServer], None] = no_op,
    on_step: Callable[[str], None] = no_op,
) -> Iterator[RayServer]:
    """What a serve config describes, as ``config`` makes one, served until the ``with`` ends; then nothing is left.

    ``address``: a running cluster's, or "local" for one of this machine. ``auth``: a new token is added to those of the
    config, and lies in ``run_dir``; without it the config alone decides. ``probe`` is called with the running service
    and should make a tiny inference. Raises ServerError where it does not get ready within ``timeout_s``.
    """
    arguments(described)  # before anything is written
    run_dir.mkdir(parents=True, exist_ok=True)
    key_file = run_dir / "key_file.json"
    with ExitStack() as cleanup:
        cleanup.callback(key_file.unlink, missing_ok=True)
        described = _with_token(described, write_key_file(key_file)) if auth else dict(described)
        args = arguments(described)
        port, grpc_port = ports_of(described)
        for each in (port, grpc_port):
            require_free(each)
        cleanup.enter_context(_cluster(address, args, on_step=on_step))
        (run_dir / CONFIG_FILE).write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        cleanup.enter_context(deployed(described, timeout_s=timeout_s, on_step=on_step))
        names = tuple(entry.name for entry in served_entries(args.archives))
        server = RayServer(names, port, grpc_port, run_dir, auth, _gcs_address())
        probe(server)
        cleanup.callback(remove_record, run_dir)
        server.record.write(run_dir)
        yield server


def arguments(described: Mapping[str, Any]) -> ServeArgs:
    """The application's arguments in a serve config. Raises ServerError for anything else."""
    try:
        (application,) = described["applications"]
        return ServeArgs.model_validate(application["args"])
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"a serve config has one application, {IMPORT_PATH}, and its args: {error}") from error


def ports_of(described: Mapping[str, Any]) -> tuple[int, int]:
    """Of HTTP and of gRPC; Serve's own where the config names none."""
    http, grpc = dict(described.get("http_options") or {}), dict(described.get("grpc_options") or {})
    return int(http.get("port") or 8000), int(grpc.get("port") or 9000)


def _with_token(described: Mapping[str, Any], digest: str) -> dict[str, Any]:
    args = arguments(described)
    args = args.model_copy(update={"tokens_sha256": (*args.tokens_sha256, digest)})
    application = {**described["applications"][0], "args": args.model_dump(mode="json")}
    return {**described, "applications": [application]}


def _gcs_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


@contextmanager
def deployed(
    described: Mapping[str, Any], *, timeout_s: float = 180.0, on_step: Callable[[str], None] = no_op
) -> Iterator[None]:
    """What a serve config describes, on the cluster that this process is connected to, until the ``with`` ends.

    ServerError where the cluster serves something already: a config says all that a cluster serves, and would end it.
    """
    from ray import serve

    if others := sorted(serve.status().applications):
        raise ServerError(
            f"this cluster serves {', '.join(others)} already; add convlens to their config file and `serve deploy` it"
        )
    serve.start(
        proxy_location=described.get("proxy_location", "EveryNode"),
        http_options=dict(described.get("http_options") or {}),
        grpc_options=dict(described.get("grpc_options") or {}),
    )
    try:
        deploy(described, timeout_s=timeout_s, on_step=on_step)
        yield
    finally:
        serve.shutdown()


def deploy(described: Mapping[str, Any], *, timeout_s: float = 180.0, on_step: Callable[[str], None] = no_op) -> None:
    """Deploy, or update replica by replica, and return when all of it runs. Raises ServerError."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    # Serve's only public way to deploy a config file goes through the dashboard, which need not run.
    schema = ServeDeploySchema.model_validate(dict(described))
    client = _get_global_client()
    assert client is not None  # it raises where Serve does not run
    client.deploy_apps(schema)
    wait_until_running([application.name for application in schema.applications], timeout_s=timeout_s, on_step=on_step)


def wait_until_running(names: list[str], *, timeout_s: float, on_step: Callable[[str], None] = no_op) -> None:
    """Returns when every application runs; ServerError at once where one fails, else after ``timeout_s``."""
    from ray import serve

    until, reported = time.monotonic() + timeout_s, ""
    while True:
        applications = serve.status().applications
        states = {name: str(applications[name].status.value) if name in applications else "…" for name in names}
        if set(states.values()) == {"RUNNING"}:
            return
        failed = [applications[name] for name in names if states[name] in ("DEPLOY_FAILED", "UNHEALTHY")]
        if failed:
            raise ServerError(f"the service does not start: {_reasons(failed[0])}")
        if time.monotonic() > until:
            raise ServerError(f"not ready after {timeout_s:g} s: {_waiting(applications, names)}; allow more time")
        if (line := _waiting(applications, names)) != reported:
            reported = line
            on_step(f"waiting for {line}")
        time.sleep(_POLL_S)


def _waiting(applications: Mapping[str, Any], names: list[str]) -> str:
    states = [
        f"{deployment} ({status.status.value.lower()})"
        for name in names
        if name in applications
        for deployment, status in applications[name].deployments.items()
        if status.status.value != "HEALTHY"
    ]
    return ", ".join(states) or "the application"


def _reasons(application: Any) -> str:
    messages = [application.message, *(status.message for status in application.deployments.values())]
    return "; ".join(dict.fromkeys(message.strip() for message in messages if message)) or "its log says why"


def require_free(port: int) -> None:
    """ServerError where somebody listens on the port: Serve would share it with another Serve without a word."""
    with closing(socket.socket()) as probe:
        probe.settimeout(_CONNECT_S)
        if probe.connect_ex((LOOPBACK, port)) == 0:
            raise ServerError(f"port {port} is not free; choose another one")


# --- the cluster ------------------------------------------------------------------------------------------------------


@contextmanager
def _cluster(address: str, args: ServeArgs, *, on_step: Callable[[str], None]) -> Iterator[None]:
    """This process connected to the cluster; a local one begins and ends here."""
    # Before ray is imported, which reads it then.
    for name, value in (ENVIRONMENT | (_LOCAL_ENVIRONMENT if address == "local" else {})).items():
        os.environ.setdefault(name, value)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "convlens"}
    if address != "local":
        _require_reachable(address)
        try:
            ray.init(address=address, **options)
        except (ValueError, RuntimeError, TimeoutError) as error:
            raise ServerError(f"no Ray cluster at {address}: {error}; start one with `ray start --head`") from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    temp = make_temp_dir()
    on_step("starting Ray on this machine")
    try:
        ray.init(
            address="local",
            # Counted, not measured: replicas wait for each other no more than TorchServe's workers do.
            num_cpus=max(os.cpu_count() or 1, _replicas(args)),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address=LOOPBACK,
            _temp_dir=str(temp),
            **options,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _replicas(args: ServeArgs) -> int:
    return sum(len(roles_of(entry, args.roles)) for entry in served_entries(args.archives))


def make_temp_dir() -> Path:
    """A new folder for Ray, whose sockets need a short path. Raises ServerError."""
    path = Path(tempfile.mkdtemp(prefix="cl-ray-"))
    if len(os.fsencode(path / _SESSION)) > _SOCKET_PATH_BYTES:
        path.rmdir()
        raise ServerError(f"{path.parent} is too long a path for a socket's folder; set TMPDIR to a shorter one")
    return path


def _require_reachable(address: str) -> None:
    # Ray itself would try for minutes.
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            raise ServerError(f"no Ray cluster at {address}: {error}; start one with `ray start --head`") from error
