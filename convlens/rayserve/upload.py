"""Uploads in Serve's HTTP proxy: a body travels to the ingress within its request.

By itself the proxy sends the head of a request alone, and the ingress asks it for the body, piece by piece: two calls
more between processes for a photograph of 100 KB.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY = "convlens.body"  # in the scope of a request: its whole body
_CARRIED_BYTES = 4_194_304  # larger bodies are asked for, so that the proxy never holds one of them whole


class CarriedBody:
    """ASGI middleware that puts a body of up to 4 MB in the request's scope once it is complete."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope, receive = await _carried(scope, receive)
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """For Serve's RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(CarriedBody)]


async def _carried(scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    messages: list[Message] = []
    size, more = 0, True
    while more:
        messages.append(message := await receive())
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or size > _CARRIED_BYTES:
            return scope, _again(messages, receive)
        more = message.get("more_body", False)
    body = b"".join(message.get("body", b"") for message in messages)
    empty = {"type": "http.request", "body": b"", "more_body": False}
    return {**scope, BODY: body}, _again([empty], receive)


def _again(messages: Sequence[Message], receive: Receive) -> Receive:
    """Receives these messages first, then what else comes."""
    left = iter(messages)

    async def received() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return received
