"""The bearer token of a server, as an argument, in a key file or in the environment, and the server's address.

The token appears in no message, no repr and no log.
"""

# The standard library alone, because a container's health check loads this every few seconds.
from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from convlens.errors import RequestError, ServerError


def is_loopback(host: str) -> bool:
    """Whether this machine itself is meant, which no proxy for the outside knows."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_of(address: str) -> str:
    """The host of a gRPC address, HOST:PORT. Raises RequestError for anything else, such as a URL."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        raise RequestError(f"{address!r} should read HOST:PORT, such as 127.0.0.1:7070", field="address")
    return host


TOKEN_VARIABLE = "CONVLENS_TOKEN"


@dataclass(frozen=True)
class TokenAuth:
    """Where the token comes from. A key file is read for each request: it is written anew when the server starts."""

    token: str | None = field(default=None, repr=False)
    key_file: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.token is not None and self.key_file is not None:
            raise RequestError("both a token and a key_file were given; give one of them")

    def header(self) -> str | None:
        """The value of the ``Authorization`` header: None without a token, for servers that ask for none.

        Raises ServerError for a key file without an inference key, and for a token that no header can carry.
        """
        source, token = self._source_and_token()
        if not token:
            return None
        # Checked here, because the errors of the libraries that send it would quote it.
        if not all("!" <= letter <= "~" for letter in token):
            raise ServerError(f"the token in {source} holds blanks or letters beyond ASCII; give the key alone")
        return f"Bearer {token}"

    def _source_and_token(self) -> tuple[str, str]:
        if self.key_file is not None:
            return str(self.key_file), _inference_key(Path(self.key_file))
        if self.token is not None:
            return "token", self.token.strip()
        return f"${TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "").strip()


def _inference_key(path: Path) -> str:
    # TorchServe writes {"inference": {"key": …}, …}, with keys of the management API beside it.
    try:
        key = json.loads(path.read_text(encoding="utf-8"))["inference"]["key"]
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror}; TorchServe writes it where it was started") from error
    except (ValueError, KeyError, TypeError):
        key = None
    if not isinstance(key, str) or not key.strip():
        # Not chained: the cause would quote what could not be read as JSON, and that may be a key.
        raise ServerError(f'{path} holds no inference key; it should read {{"inference": {{"key": "…"}}, …}}') from None
    return key.strip()
