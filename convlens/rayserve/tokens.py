"""Tokens that clients send, known to the cluster by their SHA-256 alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from convlens.errors import ServerError

_SCHEME = "bearer"
_KEY_BYTES = 24


class TokenCheck:
    """Whether an Authorization header carries one of the tokens with these digests; none: everybody may ask.

    ``file`` holds further digests, one a line, and is read again when it changes: a mounted secret can be replaced.
    """

    def __init__(self, digests: Sequence[str], file: str = "") -> None:
        self._digests, self._file = tuple(digests), Path(file) if file else None
        self._read: tuple[int, tuple[str, ...]] = (0, ())

    @property
    def required(self) -> bool:
        return bool(self._digests) or self._file is not None

    def allows(self, header: str) -> bool:
        """Whether the request with this header may be answered."""
        if not self.required:
            return True
        scheme, _, token = header.partition(" ")
        if scheme.lower() != _SCHEME:
            return False
        digest = digest_of(token.strip())
        # Each is compared, in constant time: how long it takes says nothing of which one was nearly right.
        return sum(hmac.compare_digest(digest, known) for known in (*self._digests, *self._from_file())) > 0

    def _from_file(self) -> tuple[str, ...]:
        if self._file is None:
            return ()
        try:
            changed = self._file.stat().st_mtime_ns
            if changed != self._read[0]:
                lines = self._file.read_text(encoding="ascii").split()
                self._read = changed, tuple(line for line in lines if not line.startswith("#"))
        except (OSError, UnicodeDecodeError):
            return ()  # a secret that is gone opens nothing
        return self._read[1]


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def write_key_file(path: Path) -> str:
    """A new token in a file that the clients and ``convlens token`` read, and nobody but the owner; its digest."""
    token = secrets.token_urlsafe(_KEY_BYTES)
    path.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"inference": {"key": token}}, file)
    except OSError as error:
        raise ServerError(f"cannot write {path}: {error.strerror}") from error
    return digest_of(token)
