"""The true class of each image, where it is known."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from convlens.errors import RequestError, TargetError
from convlens.models import find_class

LabelsFrom = Literal["folder"] | Path
_COLUMNS = ("label", "class_index", "class_name")


def true_classes(ids: Sequence[str], source: LabelsFrom | None, labels: Sequence[str]) -> dict[str, int]:
    """The class index of each image by its id, from its folder's name or a CSV table; empty without a ``source``.

    A table's first line names the column ``file`` and one of ``label`` (a name or an index), ``class_index`` and
    ``class_name``; rows of other images are ignored. Raises RequestError for a table that cannot be read, for an image
    that has no row, and for a label that is none of the model's.
    """
    if source is None:
        return {}
    given = {id: PurePosixPath(id).parent.name for id in ids} if source == "folder" else _read_table(Path(source))
    missing = [id for id in ids if not given.get(id)]
    if missing:
        hint = "put each image into a folder named after its class" if source == "folder" else "add their rows"
        raise RequestError(
            f"{len(missing)} of {len(ids)} images have no label in {source}, the first is {missing[0]!r}; {hint}, or "
            "leave the labels out",
            field="labels",
        )
    return {id: _class_of(given[id], id, labels) for id in ids}


def _class_of(label: str, id: str, labels: Sequence[str]) -> int:
    try:
        return find_class(labels, int(label) if label.isdecimal() else label)
    except TargetError as error:
        raise RequestError(f"the label of {id!r}: {error.message}", field="labels") from error


def _read_table(path: Path) -> Mapping[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            column = _label_column(reader.fieldnames or (), path)
            return {row["file"]: (row[column] or "").strip() for row in reader if row["file"]}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"{path} cannot be read as a CSV table ({error}); save it as UTF-8", field="labels"
        ) from error


def _label_column(names: Iterable[str], path: Path) -> str:
    names = list(names)
    column = next((column for column in _COLUMNS if column in names), None)
    if column is None or "file" not in names:
        raise RequestError(
            f"{path} needs a first line that names the columns file and {' or '.join(_COLUMNS)}; it has "
            f"{', '.join(names) or 'none'}",
            field="labels",
        )
    return column
