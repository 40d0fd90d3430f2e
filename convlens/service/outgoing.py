"""Replies to one call as the bytes or text that go out, in the form that the call asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from convlens import explain
from convlens.errors import RequestError
from convlens.service import files
from convlens.service.intake import Call
from convlens.service.kserve import wrapped
from convlens.service.media import JSON, NPZ, PNG, SAFETENSORS, Media
from convlens.service.reply import dumps, to_json
from convlens.service.request import Params, Request, jobs
from convlens.types import Reply

_PNG_BYTES = 1.5  # a pixel of an overlay, about: photographs of 0.2 to 12 million pixels gave 0.9 to 1.4


@dataclass(frozen=True)
class Outgoing:
    """``body`` is text for JSON, bytes otherwise."""

    body: str | bytes
    media: Media


def encoded(call: Call, replies: Sequence[Reply]) -> Outgoing:
    """The answer to the call whose requests got these replies. Raises RequestError where no picture came of it."""
    first, params = replies[0], call.requests[0].params
    if call.media == PNG:
        return Outgoing(_picture(first), PNG)
    if call.media == SAFETENSORS:
        return Outgoing(files.to_file(first, params, files.safetensors), SAFETENSORS)
    if call.media == NPZ:
        return Outgoing(files.to_file(first, params, files.npz), NPZ)
    bodies = [to_json(reply, one.params) for reply, one in zip(replies, call.requests, strict=True)]
    return Outgoing(dumps(wrapped(call.envelope, bodies) if call.envelope.version else bodies[0]), JSON)


def require_sendable(request: Request, default_methods: Iterable[str], *, most: int) -> None:
    """Refuse before any work what could not be sent: a picture file of several pictures or of none, or maps in the size
    of a picture that would pass ``most`` bytes. Raises RequestError.
    """
    asked = [explain.get(job.method) for job in jobs(request.params, default_methods)]
    if request.params.accept == PNG:
        _require_one_picture(request.params, [method.name for method in asked if method.drawing != "thumbnails"])
    if request.params.size == "original":
        maps = [
            3 if method.drawing in ("magnitude", "picture") else 1 for method in asked if method.needs != "embedding"
        ]
        size = _original_bytes(request, maps)
        if size > most:
            raise too_large(size, most, why="size 'original'")


def too_large(size: float, allowed: int, *, why: str = "") -> RequestError:
    """What a reply beyond its share of what the server can send is answered with."""
    instead = "size 'model' or a smaller picture" if why else "fewer methods, fewer outputs"
    return RequestError(
        f"the reply would have {'about ' if why else ''}{size / 1e6:.1f} MB and {allowed / 1e6:.1f} are allowed; "
        f"ask for {instead}, or for smaller arrays by reduce or dtype '<f2'",
        field="size" if why else "methods",
    )


def _require_one_picture(params: Params, asked: Sequence[str]) -> None:
    if len(params.output) != 1 or params.output[0] == "array":
        raise RequestError(f"{PNG} holds one picture; ask for output ['overlay'] or ['heatmap']", field="output")
    if len(asked) != 1:
        raise RequestError(
            f"{PNG} holds one picture, and this asks for {', '.join(asked) or 'none'}; name one method, such as by "
            "/explanations/NAME/1.0/saliency",
            field="methods",
        )


def _picture(reply: Reply) -> bytes:
    pictures = [png for one in reply.explanations for png in (one.overlay_png, one.heatmap_png) if png]
    if len(pictures) != 1:
        raise RequestError(f"{PNG} holds one picture, and this gave {len(pictures)}", field="methods")
    return pictures[0]


def _original_bytes(request: Request, channels: Sequence[int]) -> float:
    params, pixels = request.params, request.picture.width * request.picture.height
    base64 = 4 / 3 if params.accept == JSON else 1.0
    item = np.dtype(params.dtype).itemsize
    values = len(channels) if params.reduce != "none" else sum(channels)
    arrays = values * item if "array" in params.output else 0.0
    overlays = len(channels) * _PNG_BYTES if "overlay" in params.output else 0.0
    return pixels * base64 * (arrays + overlays)
