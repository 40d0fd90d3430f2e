"""Objects of a COCO file: boxes, polygons, and masks as run lengths (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from convlens.errors import RequestError
from convlens.evaluation.coordinates import coordinate, require_box
from convlens.evaluation.objects import MarkedObject, ObjectBox, ObjectMask, ObjectPolygons, Size


@dataclass(frozen=True)
class _Image:
    name: str
    size: Size | None


def read_coco(path: Path) -> dict[str, tuple[MarkedObject, ...]]:
    """Image name -> its objects, of every image that the file lists, also those without objects.

    An object is its segmentation where it has one, else its bbox (left, top, width, height, the first pixel's left edge
    at 0). Crowds count. RequestError, naming the file and the annotation, for what is not as COCO defines it.
    """
    document = _load(path)
    images = dict(_image(each, path) for each in _list(document, "images", path))
    labels = _labels(document, path)
    found: dict[str, list[MarkedObject]] = {image.name: [] for image in images.values()}
    if len(found) < len(images) or len(images) < len(document["images"]):
        raise RequestError(f"{path} lists an image twice; ids and file names must be unique")
    for annotation in _list(document, "annotations", path):
        where = f"{path}: annotation {_text(annotation.get('id', '?'))}"
        image = images.get(_key(annotation, "image_id", where))
        if image is None:
            raise RequestError(f"{where}: there is no image of id {_text(annotation['image_id'])} in the file")
        label = ""
        if labels and "category_id" in annotation:
            category = _key(annotation, "category_id", where)
            if category not in labels:
                raise RequestError(f"{where}: there is no category of id {_text(category)} in the file")
            label = labels[category]
        found[image.name].append(_object(annotation, image, label, f"{where} ({image.name})"))
    return {name: tuple(objects) for name, objects in found.items()}


def _load(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} cannot be read as JSON ({error}); give a COCO file") from error
    if not isinstance(document, dict):
        raise RequestError(f"{path} holds a {type(document).__name__}; a COCO file is an object with images in it")
    return document


def _list(document: Mapping[str, Any], name: str, path: Path) -> list[Mapping[str, Any]]:
    entries = document.get(name)
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise RequestError(f"{path} is no COCO file: it has no list {name!r} of objects")
    return entries


def _image(entry: Mapping[str, Any], path: Path) -> tuple[int | str, _Image]:
    where = f"{path}: image {_text(entry.get('id', '?'))}"
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where} has no file_name")
    size = (entry.get("width"), entry.get("height"))
    if size == (None, None):
        return _key(entry, "id", where), _Image(PurePosixPath(name).as_posix(), None)
    return _key(entry, "id", where), _Image(PurePosixPath(name).as_posix(), _size(size, where))


def _labels(document: Mapping[str, Any], path: Path) -> dict[int | str, str]:
    if "categories" not in document:
        return {}
    entries = _list(document, "categories", path)
    for entry in entries:
        if not isinstance(entry.get("name"), str):
            raise RequestError(f"{path}: category {_text(entry.get('id', '?'))} has no name")
    return {_key(entry, "id", f"{path}: a category"): entry["name"] for entry in entries}


def _key(entry: Mapping[str, Any], name: str, where: str) -> int | str:
    key = entry.get(name)
    if type(key) not in (int, str):  # a bool is an int to isinstance
        raise RequestError(f"{where}: {name} is {_text(key)}; it must be a number or a text")
    return key  # type: ignore[return-value]


def _object(annotation: Mapping[str, Any], image: _Image, label: str, where: str) -> MarkedObject:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return _mask(segmentation, image, label, where)
    if segmentation:
        return ObjectPolygons(_polygons(segmentation, where), label, image.size, where)
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise RequestError(f"{where}: bbox is {_text(bbox)}; it must be [left, top, width, height]")
    left, top, width, height = (coordinate(each, where, "bbox") for each in bbox)
    return ObjectBox(require_box(left, top, left + width, top + height, where), label, image.size, where)


def _polygons(segmentation: Any, where: str) -> tuple[tuple[tuple[float, float], ...], ...]:
    if not isinstance(segmentation, list):
        raise RequestError(f"{where}: segmentation is {_text(segmentation)}; it must be polygons or run lengths")
    parts = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise RequestError(f"{where}: a polygon is [x, y, x, y, …] of three corners or more")
        numbers = [coordinate(each, where, "segmentation") for each in polygon]
        parts.append(tuple(zip(numbers[::2], numbers[1::2], strict=True)))
    return tuple(parts)


def _mask(segmentation: Mapping[str, Any], image: _Image, label: str, where: str) -> ObjectMask:
    sides = segmentation.get("size")
    if not isinstance(sides, list) or len(sides) != 2:
        raise RequestError(f"{where}: size is {_text(sides)}; it must be [height, width]")
    width, height = _size((sides[1], sides[0]), where)
    if image.size is not None and image.size != (width, height):
        raise RequestError(f"{where}: the mask is {width} × {height}, its image {image.size[0]} × {image.size[1]}")
    counts = segmentation.get("counts")
    runs = _unpacked(counts, where) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise RequestError(f"{where}: counts are not run lengths; they must be whole numbers, or a text by pycocotools")
    if sum(runs) != width * height or not any(runs[1::2]):
        raise RequestError(
            f"{where}: the runs cover {sum(runs)} pixels, {sum(runs[1::2])} of the object; the mask has "
            f"{width * height}, one or more of them the object's"
        )
    return ObjectMask(tuple(runs), (width, height), label, where)


def _unpacked(counts: str, where: str) -> list[int]:
    """The run lengths of a text by pycocotools (rleFrString in its maskApi.c).

    Five bits a character, the lowest first, the sixth where more follow; from the fourth run on they are differences
    from the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise RequestError(f"{where}: counts hold {character!a} where no text by pycocotools has it")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise RequestError(f"{where}: counts end within a number; the text is cut off")
    return runs


def _size(size: tuple[Any, Any], where: str) -> Size:
    if not all(type(side) is int and 0 < side < 2**31 for side in size):
        raise RequestError(f"{where}: the size is {_text(size)}; it must be two whole numbers of pixels")
    return size


def _text(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
