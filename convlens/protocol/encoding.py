"""Replies as one file with all maps: safetensors, or NumPy's zip of arrays. No base64, so a quarter smaller than JSON.

In both, the JSON of the reply goes along, with each array's ``data`` replaced by the name of the array in the file and
``encoding`` by "attached".

Replies to one call as the bytes or text that go out, in the form that the call asked for.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convlens.errors import RequestError
from convlens.protocol.kserve import wrap_replies
from convlens.protocol.negotiation import JSON, NPZ, PNG, SAFETENSORS, Media
from convlens.protocol.params import Params
from convlens.protocol.requests import ApiRequest
from convlens.protocol.responses import dumps, flat_array, to_json
from convlens.types import Floats, Reply

Pack = Callable[[Mapping[str, Floats], str], bytes]


def encode_file(reply: Reply, params: Params, pack: Pack) -> bytes:
    """The reply's maps, in the dtype, reduction and size that the request asked for, packed into one file."""
    attached: dict[str, Floats] = {}

    def attach(values: Floats, layout: str, name: str) -> dict[str, Any]:
        attached[name] = flat_array(values, params.dtype)
        shape = list(values.shape)
        return {"dtype": params.dtype, "shape": shape, "layout": layout, "encoding": "attached", "data": name}

    return pack(attached, dumps(to_json(reply, params, encode=attach)))


def safetensors_file(arrays: Mapping[str, Floats], reply: str) -> bytes:
    """A safetensors file; the reply's JSON is the metadata entry ``reply``."""
    from safetensors.numpy import save  # on first use: a worker that nobody asks for such files does without

    return bytes(save(dict(arrays), metadata={"reply": reply}))


def npz_file(arrays: Mapping[str, Floats], reply: str) -> bytes:
    """What numpy.load reads: NAME.npy for each array, and reply.json, uncompressed. Same arrays, same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in _members(arrays, reply):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)
    return file.getvalue()


def _members(arrays: Mapping[str, Floats], reply: str) -> Iterator[tuple[str, bytes]]:
    for name, values in arrays.items():
        member = io.BytesIO()
        np.save(member, values, allow_pickle=False)
        yield f"{name}.npy", member.getvalue()
    yield "reply.json", reply.encode()


@dataclass(frozen=True)
class ApiResponse:
    """``body`` is text for JSON, bytes otherwise."""

    body: str | bytes
    media: Media


def encode_response(call: ApiRequest, replies: Sequence[Reply]) -> ApiResponse:
    """The answer to the call whose requests got these replies. Raises RequestError where no picture came of it."""
    first, params = replies[0], call.requests[0].params
    if call.media == PNG:
        return ApiResponse(_picture(first), PNG)
    if call.media == SAFETENSORS:
        return ApiResponse(encode_file(first, params, safetensors_file), SAFETENSORS)
    if call.media == NPZ:
        return ApiResponse(encode_file(first, params, npz_file), NPZ)
    bodies = [to_json(reply, one.params) for reply, one in zip(replies, call.requests, strict=True)]
    return ApiResponse(dumps(wrap_replies(call.envelope, bodies) if call.envelope.version else bodies[0]), JSON)


def reply_too_large(size: float, allowed: int, *, why: str = "") -> RequestError:
    """What a reply beyond its share of what the server can send is answered with."""
    instead = "size 'model' or a smaller picture" if why else "fewer methods, fewer outputs"
    return RequestError(
        f"the reply would have {'about ' if why else ''}{size / 1e6:.1f} MB and {allowed / 1e6:.1f} are allowed; "
        f"ask for {instead}, or for smaller arrays by reduce or dtype '<f2'",
        field="size" if why else "methods",
    )


def _picture(reply: Reply) -> bytes:
    pictures = [png for one in reply.explanations for png in (one.overlay_png, one.heatmap_png) if png]
    if len(pictures) != 1:
        raise RequestError(f"{PNG} holds one picture, and this gave {len(pictures)}", field="methods")
    return pictures[0]
