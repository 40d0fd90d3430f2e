"""Where the files lie that an archive and a server are made from.

Java ``.properties`` text to a mapping and back, by the rules of java.util.Properties.

The configuration of one server, made from the committed ``config.properties``.
"""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from convlens.errors import ServerError


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


# A key ends at the first unescaped '=', ':' or white space; white space around the separator belongs to neither side.
_PAIR = re.compile(r"((?:\\.|[^\\=:\s])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_NAMES = {control: letter for letter, control in _CONTROL.items()}


def parse(text: str) -> dict[str, str]:
    """The pairs in the text's order; of a repeated key the last value counts, as in Java."""
    pairs = (_PAIR.match(line) for line in _logical_lines(text))
    return {_plain(pair.group(1)): _plain(pair.group(2)) for pair in pairs if pair is not None}


def dump(values: Mapping[str, str]) -> str:
    """Text that ``parse``, and Java, read back as these values, in pure ASCII: Java reads the file as Latin-1."""
    return "".join(f"{_escaped(key, key=True)}={_escaped(value)}\n" for key, value in values.items())


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments and blanks, those that end in an odd number of backslashes joined to the next."""
    held = ""
    for line in re.split(r"\r\n|\r|\n", text):
        line = line.lstrip(" \t\f")
        if not held and (not line or line[0] in "#!"):
            continue
        held += line
        if (len(held) - len(held.rstrip("\\"))) % 2:
            held = held[:-1]
            continue
        yield held
        held = ""
    if held:
        yield held


def _plain(text: str) -> str:
    """Letters beyond 16 bits come as two escapes, which the round trip through UTF-16 makes one letter again."""
    units = _ESCAPE.sub(lambda found: _unescaped(found.group(1)), text)
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _unescaped(code: str) -> str:
    return chr(int(code[1:], 16)) if len(code) == 5 else _CONTROL.get(code, code)


def _escaped(text: str, *, key: bool = False) -> str:
    special = "\\=: #!" if key else "\\"
    out = "".join(_escaped_letter(letter, special) for letter in text)
    return "\\" + out if out.startswith(" ") else out


def _escaped_letter(letter: str, special: str) -> str:
    if letter in _NAMES:
        return "\\" + _NAMES[letter]
    if letter in special:
        return "\\" + letter
    if " " <= letter <= "~":
        return letter
    units = letter.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


LOOPBACK = "127.0.0.1"
_REST = ("inference", "management", "metrics")
_GRPC = ("grpc_inference", "grpc_management")


@dataclass(frozen=True)
class Ports:
    """TCP ports of one server, all on the loopback address; the defaults are TorchServe's own."""

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


def effective(
    base: Path,
    *,
    ports: Ports,
    model_store: Path,
    models: Mapping[str, str],
    auth: bool = True,
    host: str = LOOPBACK,
    overrides: Mapping[str, str] | None = None,
) -> str:
    """The text of ``base`` with this server's ports, archives (name -> file inside ``model_store``) and tokens.

    Inference and metrics listen on ``host``, management on the loopback address whatever that is.

    Keys of ``base`` that are not ours to set are kept as they are; ``overrides`` comes last. Raises ServerError for a
    base that cannot be read.
    """
    values = read(base) | _addresses(ports, host)
    values["model_store"] = str(model_store)
    values["load_models"] = ",".join(f"{name}={file}" for name, file in models.items())
    values["disable_token_authorization"] = "false" if auth else "true"
    return dump(values | dict(overrides or {}))


def read(base: Path) -> dict[str, str]:
    """The pairs of a properties file. Raises ServerError naming the file."""
    try:
        return parse(base.read_text(encoding="latin-1"))
    except OSError as error:
        raise ServerError(f"cannot read the server configuration {base}: {error.strerror}") from error


def configured_ports(base: Path) -> Ports:
    """The ports that the file itself names, TorchServe's own where it names none. Raises ServerError."""
    values, usual = read(base), Ports()
    found = {}
    for name in (field.name for field in fields(Ports)):
        key = f"{name}_address" if name in _REST else f"{name}_port"
        found[name] = _port(values[key], key=key) if key in values else getattr(usual, name)
    return Ports(**found)


def free_ports() -> Ports:
    """Ports nobody listens on now. They are held together while chosen, so no two are the same."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server((LOOPBACK, 0))) for _ in fields(Ports)]
        return Ports(*(taken.getsockname()[1] for taken in sockets))


def require_free(ports: Ports) -> None:
    """Raises ServerError naming each port that somebody already listens on, or that is named twice."""
    numbers = astuple(ports)
    if len(set(numbers)) < len(numbers):
        raise ServerError(f"a server needs five different ports, not {ports}")
    taken = [f"{field.name} {number}" for field, number in zip(fields(ports), numbers, strict=True) if _taken(number)]
    if taken:
        raise ServerError(
            f"in use on {LOOPBACK}: port {', '.join(taken)}; stop the server that listens there, or choose other ports"
        )


def _addresses(ports: Ports, host: str) -> dict[str, str]:
    hosts = {"management": LOOPBACK, "grpc_management": LOOPBACK}
    rest = {f"{name}_address": f"http://{hosts.get(name, host)}:{getattr(ports, name)}" for name in _REST}
    grpc = {f"{name}_address": hosts.get(name, host) for name in _GRPC}
    return rest | grpc | {f"{name}_port": str(getattr(ports, name)) for name in _GRPC}


def _taken(port: int) -> bool:
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
