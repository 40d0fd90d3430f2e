"""Replies to one call as the bytes or text that go out, in the form that the call asked for.

A reply as one file holds all maps, as safetensors or as NumPy's zip of arrays: no base64, so a quarter smaller than
JSON. The reply's JSON goes along, with each array's ``data`` replaced by the name of the array in the file and
``encoding`` by "attached".
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from convlens.errors import RequestError
from convlens.protocol.negotiation import JSON, NPZ, PNG, SAFETENSORS, Media
from convlens.protocol.params import Params
from convlens.protocol.requests import ApiRequest
from convlens.protocol.responses import ReplyBody, dumps
from convlens.protocol.tensors import BINARY_MEDIA, LENGTH_HEADER, detach_tensors
from convlens.types import Floats, Reply


@dataclass(frozen=True)
class ApiResponse:
    """``body`` is text for JSON, bytes otherwise; ``headers`` are those beside the content type."""

    body: str | bytes
    media: str
    headers: Mapping[str, str] = field(default_factory=dict)


def encode_response(call: ApiRequest, replies: Sequence[Reply]) -> ApiResponse:
    """The answer to the call whose requests got these replies.

    Raises RequestError where a PNG is asked for and the reply does not hold exactly one image.
    """
    first, params = replies[0], call.requests[0].params
    if call.media == PNG:
        return ApiResponse(_only_image(first), PNG)
    if call.media in _PACK:
        return ApiResponse(encode_file(first, params, call.media), call.media)
    bodies = [
        ReplyBody.from_reply(reply, request.params) for reply, request in zip(replies, call.requests, strict=True)
    ]
    wrapped = call.envelope.wrap(bodies).json_object()
    if call.envelope.binary:
        body, length = detach_tensors(wrapped, call.envelope.binary)
        return ApiResponse(body, BINARY_MEDIA, {LENGTH_HEADER: str(length)})
    return ApiResponse(dumps(wrapped), JSON)


def encode_file(reply: Reply, params: Params, media: Media) -> bytes:
    """The reply's maps, in the dtype, reduction and size that the request asked for, as one file of this type."""
    arrays: dict[str, Floats] = {}
    body = ReplyBody.from_reply(reply, params, file=arrays)
    return _PACK[media](arrays, dumps(body.json_object()))


def _safetensors(arrays: Mapping[str, Floats], reply_json: str) -> bytes:
    """A safetensors file; the reply's JSON is the metadata entry ``reply``."""
    from safetensors.numpy import save  # on first use: a worker that nobody asks for such files does without

    return bytes(save(dict(arrays), metadata={"reply": reply_json}))


def _npz(arrays: Mapping[str, Floats], reply_json: str) -> bytes:
    """What numpy.load reads: NAME.npy for each array, and reply.json, uncompressed. Same arrays, same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, values in arrays.items():
            member = io.BytesIO()
            np.save(member, values, allow_pickle=False)
            # A ZipInfo has a fixed date, 1980; with writestr's current time equal replies would differ in their bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
        archive.writestr(zipfile.ZipInfo("reply.json"), reply_json)
    return file.getvalue()


_PACK: Mapping[Media, Callable[[Mapping[str, Floats], str], bytes]] = {SAFETENSORS: _safetensors, NPZ: _npz}


def reply_too_large(size: float, allowed: int, *, why: str = "") -> RequestError:
    """The error for a reply of ``size`` bytes where ``allowed`` fit; ``why`` names the parameter of an estimate."""
    instead = "size 'model' or a smaller image" if why else "fewer methods, fewer outputs"
    return RequestError(
        f"the reply would have {'about ' if why else ''}{size / 1e6:.1f} MB and {allowed / 1e6:.1f} are allowed; "
        f"ask for {instead}, or for smaller arrays by reduce or dtype '<f2'",
        field="size" if why else "methods",
    )


def _only_image(reply: Reply) -> bytes:
    images = [png for one in reply.explanations for png in (one.overlay_png, one.heatmap_png) if png]
    if len(images) != 1:
        raise RequestError(f"{PNG} holds one image, and this request gives {len(images)}", field="methods")
    return images[0]
