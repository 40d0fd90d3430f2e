"""Files that say where the objects are: COCO (.json), tables (.csv), and folders of Pascal VOC XML or of masks.

All coordinates become pixels of the upright original image, as ``objects`` describes them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from convlens.errors import ImageError, RequestError
from convlens.evaluation.coco import read_coco
from convlens.evaluation.coordinates import coordinate, require_box
from convlens.evaluation.objects import MarkedObject, Mask, ObjectBox, ObjectMask, Size, mask_runs
from convlens.image.codec import DAMAGE, Limits, read_bytes
from convlens.image.png import has_all_pixels, png_of_pixels

Objects = dict[str, tuple[MarkedObject, ...]]
_COLUMNS = ("file", "xmin", "ymin", "xmax", "ymax")
_KINDS = "a COCO file (.json), a table (.csv), a folder of Pascal VOC files (.xml) or of masks (.png)"
_LARGEST_XML = 2**22  # bytes; it speaks of one image
_GREY = {"1", "L", "P", "I;16", "I;16B", "I"}


def read_boxes(path: str | Path) -> Objects:
    """Image name -> its objects; an image that was looked at and shows none has none.

    ``.json``: COCO, see ``coco``. ``.csv``: a table with the columns file, xmin, ymin, xmax, ymax and, if wanted,
    label; others are ignored; xmin of the first pixel is 0, xmax is where the box ends. A folder of ``.xml``: Pascal
    VOC, whose first pixel is 1 and whose last one belongs to the box; parts of objects are ignored, and a file that
    refers to a DTD or defines entities is refused. A folder of ``.png``: masks of the image's size, of grey values or
    of a palette; every pixel that is not 0 belongs to the object. Folders are walked, hidden files skipped.

    Names are paths as the file writes them; of VOC and masks the folder relative to ``path`` with the name in the file,
    or the mask's without ``.png``. :func:`objects_by_id` finds them. Raises RequestError, naming file and line, for
    what cannot be read and for boxes without pixels.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise RequestError(f"no such file or folder: {path}; give {_KINDS}")
    readers = {".json": read_coco, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise RequestError(f"{path} marks no objects that can be read; give {_KINDS}")
    return readers[path.suffix.lower()](path)


def objects_by_id(boxes: Mapping[str, tuple[MarkedObject, ...]], ids: Iterable[str]) -> Objects:
    """Image id -> objects, of those ids that are named in full or without their suffix (``cats/1`` for ``cats/1.jpg``).

    RequestError where none is.
    """
    ids = list(ids)
    named = {id: next((name for name in (id, _without_suffix(id)) if name in boxes), None) for id in ids}
    found = {id: boxes[name] for id, name in named.items() if name is not None}
    if not found:
        raise RequestError(
            f"no object is marked in any of {len(ids)} images: they are called {_examples(ids)}, the marked ones "
            f"{_examples(list(boxes))}; write paths relative to the images' folder"
        )
    return found


def _read_folder(folder: Path) -> Objects:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in (".xml", ".png")
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) != 1:
        found = "both .xml and .png files" if kinds else "neither .xml nor .png files"
        raise RequestError(f"{folder} holds {found}; give {_KINDS}")
    read = _read_voc if kinds == {".xml"} else _read_mask
    objects: Objects = {}
    for file in files:
        name, marked = read(file)
        name = (PurePosixPath(file.relative_to(folder).parent) / name).as_posix()
        if name in objects:
            raise RequestError(f"{file} marks objects in {name!r}, as a file before it does; leave one out")
        objects[name] = marked
    return objects


# --- tables -----------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Objects:
    objects: dict[str, list[MarkedObject]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte-order mark
            reader = csv.reader(file, strict=True)
            header = _header(next(reader, []), path)
            for row in reader:
                if row:
                    name, box = _csv_box(header, row, f"{path}: line {reader.line_num}")
                    objects.setdefault(name, []).append(box)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} cannot be read as a CSV table ({error}); save it as UTF-8") from error
    if not objects:
        raise RequestError(f"{path} has no boxes below its first line; write one a line")
    return {name: tuple(boxes) for name, boxes in objects.items()}


def _header(row: list[str], path: Path) -> list[str]:
    columns = [column.strip() for column in row]
    missing = [column for column in _COLUMNS if column not in columns]
    if missing or len(set(columns)) < len(columns):
        wrong = f"lacks {', '.join(missing)}" if missing else "names a column twice"
        raise RequestError(f"{path}: the first line {wrong}; it must be file,xmin,ymin,xmax,ymax or with ,label")
    return columns


def _csv_box(columns: list[str], row: list[str], where: str) -> tuple[str, ObjectBox]:
    if len(row) != len(columns):
        raise RequestError(f"{where} has {len(row)} fields, the first line {len(columns)}; put commas in quotes")
    fields = dict(zip(columns, row, strict=True))
    name = fields["file"].strip()
    if not name:
        raise RequestError(f"{where} names no file")
    left, top, right, bottom = (coordinate(fields[side], where, side) for side in _COLUMNS[1:])
    box = require_box(left, top, right, bottom, where)
    label = fields.get("label", "").strip()
    return PurePosixPath(name).as_posix(), ObjectBox(box, label, source=f"{where} ({name})")


# --- Pascal VOC -------------------------------------------------------------------------------------------------------


def _read_voc(path: Path) -> tuple[str, tuple[MarkedObject, ...]]:
    root = _parsed(path)
    if root.tag != "annotation":
        raise RequestError(f"{path} holds <{root.tag}>; a Pascal VOC file holds <annotation>")
    # Tools write whole paths of other machines here; the folder is the annotation's own.
    name = PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/")).name or path.stem
    size = _voc_size(root, path)
    return name, tuple(
        _voc_box(element, size, f"{path}: object {number} ({name})")
        for number, element in enumerate(root.findall("object"), start=1)
    )


def _parsed(path: Path) -> ElementTree.Element:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_XML + 1)
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})") from error
    if len(data) > _LARGEST_XML:
        raise RequestError(f"{path} has more than {_LARGEST_XML} bytes; a Pascal VOC file speaks of one image")
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise RequestError(f"{path} refers to a DTD, in which entities can be defined; remove its DOCTYPE")

    # Called before any entity can be expanded: a few lines of them make gigabytes.
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise RequestError(f"{path} is no XML ({error}); give Pascal VOC files") from error


def _voc_size(root: ElementTree.Element, path: Path) -> Size | None:
    texts = (root.findtext("size/width"), root.findtext("size/height"))
    if texts == (None, None):
        return None
    width, height = (coordinate(text, f"{path}: size", "a side") for text in texts)
    return (int(width), int(height)) if width > 0 and height > 0 else None  # some tools write 0 for not known


def _voc_box(element: ElementTree.Element, size: Size | None, where: str) -> ObjectBox:
    sides = {side: element.findtext(f"bndbox/{side}") for side in _COLUMNS[1:]}
    missing = [side for side, text in sides.items() if text is None]
    if missing:
        raise RequestError(f"{where} has no {', '.join(missing)} in a bndbox")
    left, top, right, bottom = (coordinate(text, where, side) for side, text in sides.items())
    box = require_box(left - 1, top - 1, right, bottom, where)
    return ObjectBox(box, (element.findtext("name") or "").strip(), size, where)


# --- masks ------------------------------------------------------------------------------------------------------------


def _read_mask(path: Path) -> tuple[str, tuple[MarkedObject, ...]]:
    try:
        mask_HW = _mask_pixels(path)
    except ImageError as error:
        raise RequestError(error.message) from error
    except DAMAGE as error:
        raise RequestError(f"{path} is no PNG, or a damaged one ({error}); save the mask again") from error
    marked = ObjectMask(mask_runs(mask_HW), (mask_HW.shape[1], mask_HW.shape[0]), source=f"{path}")
    return path.name[: -len(".png")], (marked,) if mask_HW.any() else ()


def _mask_pixels(path: Path) -> Mask:
    # Not convlens.image.read: it makes colours of a palette's numbers, and 0 of the lowest of 16 bits.
    png, limits = png_of_pixels(read_bytes(path)), Limits()
    with PngImageFile(io.BytesIO(png)) as mask:
        if mask.width * mask.height > limits.pixels:
            raise ImageError(f"{path}: a mask of {mask.width} × {mask.height} pixels; at most {limits.pixels}")
        if mask.mode not in _GREY:
            raise ImageError(f"{path}: a mask of colours ({mask.mode}); save it as grey values, 0 where no object is")
        if not has_all_pixels(png):
            raise ImageError(f"{path}: its pixel data ends before the mask is complete; save it again")
        return np.asarray(np.asarray(mask) != 0)


def _without_suffix(id: str) -> str:
    return PurePosixPath(id).with_suffix("").as_posix()


def _examples(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (" …" if len(names) > 3 else "")
