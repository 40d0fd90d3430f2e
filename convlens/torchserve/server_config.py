"""A server's ``config.properties``: the committed file, and the one in force, with its own ports and archives."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import javaproperties

from convlens.errors import ServerError

LOOPBACK = "127.0.0.1"
_REST = ("inference", "management", "metrics")
_GRPC = ("grpc_inference", "grpc_management")


@dataclass(frozen=True)
class Ports:
    """TCP ports of one server; the defaults are TorchServe's own."""

    inference: int = 8080
    management: int = 8081
    metrics: int = 8082
    grpc_inference: int = 7070
    grpc_management: int = 7071


def committed() -> Path:
    """The repository's ``config.properties``, beside the ``handlers`` package. Raises ServerError where it is not."""
    path = handlers_folder().parent / "config.properties"
    if not path.is_file():
        raise ServerError(f"no {path}; run from a checkout of the repository, or say which file to start from")
    return path


def handlers_folder() -> Path:
    """The folder of the ``handlers`` package, found without importing it: it needs TorchServe's worker around it.

    Raises ServerError.
    """
    spec = importlib.util.find_spec("handlers")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ServerError("no handlers package; install ConvLens from a checkout of its repository")
    return Path(folders[0])


def package_folder() -> Path:
    """The folder of the ``convlens`` package that runs now."""
    return Path(__file__).resolve().parents[1]


def read(path: Path) -> dict[str, str]:
    """The pairs of a properties file, by the rules of java.util.Properties. Raises ServerError naming the file."""
    try:
        # Java reads the file as Latin-1; what is beyond that is written as \uXXXX.
        return javaproperties.loads(path.read_text(encoding="latin-1"))
    except OSError as error:
        raise ServerError(f"cannot read the server configuration {path}: {error.strerror}") from error
    except javaproperties.InvalidUEscapeError as error:
        raise ServerError(f"cannot read the server configuration {path}: {error}; write \\uXXXX") from error


def write(path: Path, values: Mapping[str, str]) -> None:
    """A properties file that ``read``, and Java, read back as these values."""
    path.write_text(javaproperties.dumps(values, timestamp=False), encoding="ascii")


def effective(
    base: Path,
    *,
    ports: Ports,
    model_store: Path,
    models: Mapping[str, str],
    auth: bool = True,
    host: str = LOOPBACK,
    overrides: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The values of ``base`` with this server's ports, archives (name -> file inside ``model_store``) and tokens.

    Inference and metrics listen on ``host``, management always on the loopback address. Other keys of ``base`` are kept
    as they are; ``overrides`` come last. Raises ServerError for a base that cannot be read.
    """
    # Management can scale workers down to none: unlike the registering of models, that is on by default.
    hosts = {"management": LOOPBACK, "grpc_management": LOOPBACK}
    return {
        **read(base),
        **{f"{name}_address": f"http://{hosts.get(name, host)}:{getattr(ports, name)}" for name in _REST},
        **{f"{name}_address": hosts.get(name, host) for name in _GRPC},
        **{f"{name}_port": str(getattr(ports, name)) for name in _GRPC},
        "model_store": str(model_store),
        "load_models": ",".join(f"{name}={file}" for name, file in models.items()),
        "disable_token_authorization": "false" if auth else "true",
        **(overrides or {}),
    }


# --- ports ------------------------------------------------------------------------------------------------------------


def configured_ports(base: Path) -> Ports:
    """The ports that the file itself names, TorchServe's own where it names none. Raises ServerError."""
    values = read(base)
    keys = {name: f"{name}_address" for name in _REST} | {name: f"{name}_port" for name in _GRPC}
    return Ports(**{name: _port(values[key], key=key) for name, key in keys.items() if key in values})


def usual_ports(**named: int | None) -> Ports:
    """The ports that are named; for each other one the usual port, or the next above it that nobody listens on now.

    Raises ServerError where a named port is in use, or named twice.
    """
    usual: dict[str, int] = asdict(Ports())
    ports = {name: port for name, port in named.items() if port is not None}
    for name in [name for name in usual if name not in ports]:
        others = {port for other, port in usual.items() if other != name}
        ports[name] = _next_free(usual[name], others | {*ports.values()})
    chosen = Ports(**ports)
    require_free(chosen)
    return chosen


def free_ports() -> Ports:
    """Ports nobody listens on now. They are held together while chosen, so no two are the same."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in fields(Ports)]
        return Ports(*(listening.getsockname()[1] for listening in sockets))


def require_free(ports: Ports) -> None:
    """Raises ServerError naming each port that somebody already listens on, or that is named twice."""
    numbers = astuple(ports)
    if len(set(numbers)) < len(numbers):
        raise ServerError(f"a server needs five different ports, not {ports}")
    used = [f"{field.name} {number}" for field, number in zip(fields(ports), numbers, strict=True) if _in_use(number)]
    if used:
        raise ServerError(
            f"in use on {LOOPBACK}: port {', '.join(used)}; stop the server that listens there, or choose other ports"
        )


def _next_free(first: int, others: set[int]) -> int:
    for port in range(first, 65536):
        if port not in others and not _in_use(port):
            return port
    raise ServerError(f"no port from {first} on is free; name one")


def _in_use(port: int) -> bool:
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return True
    return False


def _port(value: str, *, key: str) -> int:
    text = value if value.isdigit() else urlsplit(value).netloc.rpartition(":")[2]
    if not text.isdigit():
        raise ServerError(f"{key}={value} names no port; write it like http://{LOOPBACK}:8080 or 7070")
    return int(text)
