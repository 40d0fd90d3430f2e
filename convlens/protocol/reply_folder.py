"""A reply as a folder: ``reply.json``, the arrays as ``ID.npz``, and the images as they were encoded.

The JSON is that of a reply as one file (``encoding.py``): in place of an array or an image it holds
``"encoding": "attached"`` and the name of a file, for an array ``ID.npz/NAME``. Nothing is stored twice.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convlens.errors import ConvLensError
from convlens.protocol.params import parse_params
from convlens.protocol.responses import ReplyBody, dumps, from_json
from convlens.types import Attribution, Explanation, Floats, Neighbourhood, Reply, Result

REPLY = "reply.json"
VALUES = "values_NCHW"
ImageKind = Literal["overlay", "heatmap"]

_PLAIN = parse_params({"output": ["array"], "thumbnails": False})  # whole maps on the grid they have, no base64 at all


# ---- names


def array_file(explanation_id: str) -> str:
    """The name of an explanation's arrays: ``values_NCHW`` and the extras, for ``numpy.load``."""
    return f"{_plain_name(explanation_id)}.npz"


def image_file(explanation_id: str, kind: ImageKind) -> str:
    """The name of an explanation's image."""
    return f"{_plain_name(explanation_id)}.{kind}.png"


def neighbour_file(explanation_id: str, rank: int) -> str:
    """The name of the thumbnail of the neighbour of this rank, 1 for the nearest."""
    return f"{_plain_name(explanation_id)}.{rank}.jpg"


def _plain_name(name: str) -> str:
    # A server may send any id, and a folder may come from anywhere: neither may lead out of the folder.
    if not name or Path(name).name != name or "\\" in name or "\0" in name:
        raise ConvLensError(f"{name!r} is no plain file name; an explanation's id holds no slashes and is not empty")
    return name


# ---- writing


def write_reply(folder: Path, reply: Reply) -> None:
    """Write the reply into an existing folder, its arrays in the dtype they have.

    Raises ConvLensError for an id that is no plain file name or that two explanations share, OSError where the folder
    cannot be written to.
    """
    ids = [explanation.id for explanation in reply.explanations]
    if len(set(ids)) < len(ids):
        raise ConvLensError(f"two explanations share an id among {', '.join(ids)}; give each its own")
    plain = replace(reply, explanations=tuple(map(_without_images, reply.explanations)))
    body = ReplyBody.from_reply(plain, _PLAIN, file={}).json_object()
    for explanation, item in zip(reply.explanations, body["explanations"], strict=True):
        if isinstance(explanation.result, Attribution):
            _store_arrays(folder, explanation.id, explanation.result, item)
        else:
            _store_thumbnails(folder, explanation.id, explanation.result, item)
        _store_images(folder, explanation, item)
    (folder / REPLY).write_text(dumps(body), encoding="utf-8")


def _without_images(explanation: Explanation) -> Explanation:
    return replace(explanation, overlay_png=b"", heatmap_png=b"")


def _store_arrays(folder: Path, explanation_id: str, result: Attribution, item: dict[str, Any]) -> None:
    name = array_file(explanation_id)
    arrays = {VALUES: result.values_NCHW, **result.extras}
    np.savez(folder / name, allow_pickle=False, **arrays)
    for key, entry in {VALUES: item["array"], **item["extras"]}.items():
        entry |= {"dtype": arrays[key].dtype.str, "data": f"{name}/{key}"}


def _store_thumbnails(folder: Path, explanation_id: str, result: Neighbourhood, item: dict[str, Any]) -> None:
    nearest = zip(result.neighbours_NM[0], item["neighbours"], strict=True)
    for rank, (neighbour, entry) in enumerate(nearest, start=1):
        if neighbour.thumbnail:
            entry["thumbnail"] = _store(folder, neighbour_file(explanation_id, rank), neighbour.thumbnail, "image/jpeg")


def _store_images(folder: Path, explanation: Explanation, item: dict[str, Any]) -> None:
    images: dict[ImageKind, bytes] = {"overlay": explanation.overlay_png, "heatmap": explanation.heatmap_png}
    for kind, png in images.items():
        if png:
            item[kind] = _store(folder, image_file(explanation.id, kind), png, "image/png")


def _store(folder: Path, name: str, data: bytes, media_type: str) -> dict[str, str]:
    (folder / name).write_bytes(data)
    return {"media_type": media_type, "encoding": "attached", "data": name}


# ---- reading


def read_reply(folder: Path) -> Reply:
    """The reply that ``write_reply`` wrote into the folder.

    Raises ConvLensError for files that are no such reply, or are damaged, and for a name that leads out of the folder.
    """
    try:
        body = json.loads((folder / REPLY).read_bytes())
        stored = [_take_files(item) for item in body["explanations"]]
        reply = from_json(body)
        explanations = tuple(
            _with_files(folder, explanation, files)
            for explanation, files in zip(reply.explanations, stored, strict=True)
        )
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ConvLensError(f"{folder} holds no whole reply: {error}; name a picture's folder of results") from error
    return replace(reply, explanations=explanations)


def _take_files(item: dict[str, Any]) -> dict[str, Any]:
    """What an explanation's JSON says of files, taken out of it: the rest is a reply without arrays and images."""
    taken = {key: item.pop(key) for key in ("array", "extras", "overlay", "heatmap") if key in item}
    return taken | {"thumbnails": [near.pop("thumbnail", None) for near in item.get("neighbours") or ()]}


def _with_files(folder: Path, explanation: Explanation, files: Mapping[str, Any]) -> Explanation:
    return replace(
        explanation,
        result=_with_data(folder, explanation.result, files),
        overlay_png=_read(folder, files.get("overlay")),
        heatmap_png=_read(folder, files.get("heatmap")),
    )


def _with_data(folder: Path, result: Result, files: Mapping[str, Any]) -> Result:
    if isinstance(result, Attribution):
        values = _read_array(folder, files["array"])
        extras = {name: _read_array(folder, entry) for name, entry in files["extras"].items()}
        return replace(result, values_NCHW=values, extras=extras)
    nearest = zip(result.neighbours_NM[0], files["thumbnails"], strict=True)
    row = tuple(replace(neighbour, thumbnail=_read(folder, entry)) for neighbour, entry in nearest)
    return replace(result, neighbours_NM=(row,))


def _read_array(folder: Path, entry: Mapping[str, Any]) -> Floats:
    """The array, batch first as in the file; ValueError where it is not of the dtype and shape that the JSON says."""
    name, _, member = entry["data"].partition("/")
    with np.load(folder / _plain_name(name), allow_pickle=False) as arrays:
        values: Floats = arrays[member]
    if [values.dtype.str, *values.shape[1:]] != [entry["dtype"], *entry["shape"]]:
        raise ValueError(f"{entry['data']} is {values.dtype.str} {values.shape}, and {REPLY} says otherwise")
    return values


def _read(folder: Path, entry: Mapping[str, str] | None) -> bytes:
    return (folder / _plain_name(entry["data"])).read_bytes() if entry else b""
