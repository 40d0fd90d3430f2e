"""Names of classes: where they come from, and which index a name means."""

from __future__ import annotations

import csv
import json
import reprlib
import unicodedata
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

from convlens.errors import ModelError, TargetError, near_matches

_IMAGENET = "imagenet"


def find_class(labels: Sequence[str], target: int | str) -> int:
    """The index of a class given by its index or by its label, upper and lower case alike.

    A label that is right to the letter wins over others that differ in case only (ImageNet's ``Cardigan`` is a dog, its
    ``cardigan`` a garment). Digits in a string are a label, not an index. Raises TargetError for an index out of range,
    an unknown label, and a label that several classes bear.
    """
    value: object = target  # it may come from JSON or numpy, whatever the annotation says
    if isinstance(value, Integral | int) and not isinstance(value, bool):
        return _in_range(labels, int(value))
    if not isinstance(value, str):
        raise TargetError(f"target {target!r} should be a class index (a whole number) or a label (a string)")
    return _by_label(labels, value)


def _in_range(labels: Sequence[str], index: int) -> int:
    if not 0 <= index < len(labels):
        # Shortened by reprlib: JSON may hold whole numbers of thousands of digits.
        raise TargetError(f"no class {reprlib.repr(index)}; there are 0..{len(labels) - 1}")
    return index


def _by_label(labels: Sequence[str], name: str) -> int:
    folded = name.strip().casefold()
    exact = [index for index, label in enumerate(labels) if label == name]
    matches = exact or [index for index, label in enumerate(labels) if label.casefold() == folded]
    if len(matches) > 1:
        choices = ", ".join(f"{index} ({labels[index]})" for index in matches)
        raise TargetError(f"{len(matches)} classes are labelled {name!r}: {choices}; give the index")
    if not matches:
        hint = near_matches(name, dict.fromkeys(labels))
        raise TargetError(
            f"no class labelled {name!r} among {len(labels)}{hint}; an index 0..{len(labels) - 1} works too"
        )
    return matches[0]


def imagenet_labels() -> tuple[str, ...]:
    """ImageNet-1k's 1,000 class names in their usual order, as torchvision's weights carry them."""
    from torchvision.models import ResNet18_Weights  # here: it takes 2 s, and a labels file needs none of it

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def read_labels(path: str) -> tuple[str, ...]:
    """Class names from a file: a JSON list, a CSV of one row or one column, or any other text with one label a line.

    ``imagenet`` stands for the ImageNet-1k names. Raises ModelError for a file that cannot be read or holds no such
    list.
    """
    if path == _IMAGENET:
        return imagenet_labels()
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")  # Excel begins its files with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"labels file {file} cannot be read: {error}") from error
    return _checked(file, _split(file, text))


def _split(path: Path, text: str) -> list[object]:
    if path.suffix.lower() == ".json":
        return _json_list(path, text)
    if path.suffix.lower() == ".csv":
        return _csv_list(path, text)
    return [line.strip() for line in text.strip().splitlines()]


def _json_list(path: Path, text: str) -> list[object]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ModelError(f"labels file {path} is not valid JSON: {error}") from error
    if not isinstance(content, list):
        raise ModelError(f"labels file {path} holds a {type(content).__name__}; it should hold a list of strings")
    return content


def _csv_list(path: Path, text: str) -> list[object]:
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    if len(rows) != 1 and any(len(row) != 1 for row in rows):
        raise ModelError(f"labels file {path} has several columns and rows; it should have one row or one column")
    return [cell.strip() for row in rows for cell in row]


def _checked(path: Path, values: list[object]) -> tuple[str, ...]:
    labels: list[str] = []
    for index, label in enumerate(values):
        # Control characters would break the header and log lines that labels end up in.
        if not isinstance(label, str) or not label or any(unicodedata.category(letter) == "Cc" for letter in label):
            raise ModelError(
                f"labels file {path}: label {index} is {label!r}; it should be a line of text that is not empty"
            )
        labels.append(label)
    if not labels:
        raise ModelError(f"labels file {path} is empty")
    return tuple(labels)
