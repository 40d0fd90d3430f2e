"""Where the labels of a gallery's pictures come from: their folders, or a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from convlens.errors import GalleryError

LabelFrom = Literal["folder"] | Path


def labels_of(ids: Sequence[str], label_from: LabelFrom) -> list[str]:
    """A label for each id: its folder relative to the root, "" at the root; or what a CSV table (file, label) says.

    Raises GalleryError for a table that cannot be read or leaves a picture without a label; its other rows are ignored.
    """
    if label_from == "folder":
        return [_folder(id) for id in ids]
    table = _read(Path(label_from))
    missing = [id for id in ids if id not in table]
    if missing:
        raise GalleryError(
            f"{label_from} has no label for {len(missing)} of {len(ids)} pictures, the first is {missing[0]!r}; "
            "write their paths relative to the pictures' folder, with forward slashes"
        )
    return [table[id] for id in ids]


def _folder(id: str) -> str:
    parent = PurePosixPath(id).parent.as_posix()
    return "" if parent == "." else parent


def _read(path: Path) -> Mapping[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GalleryError(f"{path} cannot be read as a CSV table ({error}); save it as UTF-8") from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise GalleryError(f"{path} needs a first line that names the columns file and label, and rows below it")
    return {row["file"]: row["label"] or "" for row in rows if row["file"]}
