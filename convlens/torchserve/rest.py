"""Asking a running server over REST."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from convlens.errors import ConvLensError, ServerError
from convlens.protocol.responses import from_json
from convlens.types import Reply


class RemoteError(ConvLensError):
    """The server refused this request; ``status`` is its HTTP code and the message its own."""

    def __init__(self, status: int, message: str, *, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.status = status


def explain(
    url: str,
    picture: bytes,
    *,
    model: str,
    params: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> Reply:
    """The server's answer for one encoded picture, explained as ``params`` say (default: as the archive says).

    ``url`` is the inference address, such as http://127.0.0.1:8080. Raises RemoteError with the server's message for
    an error reply, ServerError where no server answers.
    """
    files = {"data": ("picture", picture, "application/octet-stream")}
    if params:
        files["params"] = ("params", json.dumps(dict(params)).encode(), "application/json")
    try:
        answer = httpx.post(
            f"{url}/explanations/{model}",
            files=files,
            headers=dict(headers or {}),
            timeout=timeout_s,
            trust_env=not _on_this_machine(url),  # a proxy for the outside knows no loopback
        )
    except httpx.HTTPError as error:
        raise ServerError(f"no answer from {url}: {error}; is the server running?") from error
    body = _object(answer)
    if answer.status_code != 200:
        raise RemoteError(answer.status_code, str(body.get("message", answer.text[:300])), field=body.get("field"))
    return from_json(body)


def _on_this_machine(url: str) -> bool:
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {}
