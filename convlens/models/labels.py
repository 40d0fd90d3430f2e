"""Names of classes: where they come from, and which index a name means."""

from __future__ import annotations

import csv
import json
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from convlens.errors import ModelError, TargetError, near_matches

_IMAGENET = "imagenet"
_KEYS = ("id2label", "names")  # of Hugging Face's config.json and of YOLO's data.yaml
_WORDNET = re.compile(r"n\d{8}")


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
    """Class names from a file, in the order of their indices.

    JSON and YAML: a list, or an object from indices to names (TorchServe's ``index_to_name.json``; a name may be a pair
    of WordNet id and name) or from names to indices, alone or under ``id2label`` or ``names``. CSV: one row, one
    column, or two columns of which one holds indices. Any other text: one label a line. ``imagenet`` stands for the
    ImageNet-1k names. Raises ModelError for a file that cannot be read or holds no such names, and for indices that are
    not 0..K-1.
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
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _of_content(path, _parse_json(path, text))
    if suffix in (".yaml", ".yml"):
        return _of_content(path, _parse_yaml(path, text))
    if suffix == ".csv":
        return _csv_list(path, text)
    return [line.strip() for line in text.strip().splitlines()]


def _parse_json(path: Path, text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"labels file {path} is not valid JSON: {error}") from error


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object's entries; ValueError where a key comes twice, of which Python would keep the last."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key {key!r} comes {count} times")
    return dict(pairs)


def _parse_yaml(path: Path, text: str) -> object:
    import yaml  # only here: it takes longer to import than the rest of this module

    try:
        document = yaml.compose(text, yaml.SafeLoader)
        _refuse_doubles(document, set())
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"labels file {path} is not valid YAML: {' '.join(str(error).split())}") from error


def _refuse_doubles(node: Any, seen: set[int]) -> None:
    """ValueError where a mapping has a key twice, of which PyYAML would keep the last."""
    if id(node) in seen or not isinstance(getattr(node, "value", None), list):
        return
    seen.add(id(node))  # aliases name one node several times
    pairs = [item if isinstance(item, tuple) else (None, item) for item in node.value]
    _without_doubles([(str(key.value), None) for key, _ in pairs if key is not None])
    for _, value in pairs:
        _refuse_doubles(value, seen)


def _of_content(path: Path, content: object) -> list[object]:
    """The names in a list, or in an object that has them itself or under one of the usual keys."""
    held = next((content[key] for key in _KEYS if key in content), content) if isinstance(content, Mapping) else content
    if isinstance(held, Mapping) and held:
        values = _by_index(path, held)
    elif isinstance(held, list):
        values = held
    else:
        raise ModelError(
            f"labels file {path} holds a {type(held).__name__}; it should hold a list of strings or an object from "
            f"indices to names, alone or under one of: {', '.join(_KEYS)}"
        )
    count = content.get("nc") if isinstance(content, Mapping) and held is not content else None
    if isinstance(count, int) and count != len(values):
        raise ModelError(f"labels file {path} says nc: {count}, but holds {len(values)} names; correct one of them")
    return [_name(value) for value in values]


def _name(value: object) -> object:
    """The name alone of a WordNet id and a name."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and _WORDNET.fullmatch(value[0]):
        return value[1]
    return value


def _by_index(path: Path, names: Mapping[Any, object]) -> list[object]:
    """The names in the order of their indices, which are the keys or, as ImageFolder has them, the values."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in names.values()):
        pairs = [(index, name) for name, index in names.items()]
    else:
        pairs = [(_index(key), name) for key, name in names.items()]
    odd = [key for key, (index, _) in zip(names, pairs, strict=True) if not isinstance(index, int)]
    if odd:
        raise ModelError(
            f"labels file {path} has the key {reprlib.repr(odd[0])}; an object of labels goes from indices 0..K-1 to "
            "names, or from names to indices"
        )
    return _in_order(path, [(int(str(index)), name) for index, name in pairs])


def _index(key: object) -> int | None:
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    # isascii: isdigit and int alone take digits of every script. No more than nine: int() of thousands takes long.
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 else None


def _in_order(path: Path, pairs: Sequence[tuple[int, object]]) -> list[object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        twice = [str(index) for index, count in Counter(index for index, _ in pairs).items() if count > 1]
        raise ModelError(f"labels file {path} has several labels for the indices {', '.join(twice[:8])}; give one each")
    missing = [str(index) for index in range(len(names)) if index not in names]
    if missing:
        start = "; they seem to start at 1: count from 0" if min(names) == 1 and max(names) == len(names) else ""
        raise ModelError(
            f"labels file {path} has {len(names)} labels with indices {min(names)}..{max(names)}; they should be "
            f"0..{len(names) - 1} without gaps, but there are none for {', '.join(missing[:8])}"
            f"{', …' if len(missing) > 8 else ''}{start}"
        )
    return [names[index] for index in range(len(names))]


def _csv_list(path: Path, text: str) -> list[object]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    if len(rows) == 1 or all(len(row) == 1 for row in rows):
        return [cell for row in rows for cell in row]
    for column in (0, 1) if all(len(row) == 2 for row in rows) else ():
        # The first row may be a header.
        body = rows if _index(rows[0][column]) is not None else rows[1:]
        indices = [_index(row[column]) for row in body]
        if None not in indices:
            return _in_order(path, [(index or 0, row[1 - column]) for index, row in zip(indices, body, strict=True)])
    raise ModelError(
        f"labels file {path} has several columns and rows; it should have one row or one column, or two columns of "
        "which one holds the indices 0..K-1"
    )


def _checked(path: Path, values: list[object]) -> tuple[str, ...]:
    labels: list[str] = []
    for index, label in enumerate(values):
        # Control characters would break the header and log lines that labels end up in.
        if not isinstance(label, str) or not label or any(unicodedata.category(letter) == "Cc" for letter in label):
            raise ModelError(
                f"labels file {path}: label {index} is {reprlib.repr(label)}; it should be a non-empty line of text"
                f"{'' if isinstance(label, str) else ' (in quotation marks where it looks like a number or yes)'}"
            )
        labels.append(label)
    if not labels:
        raise ModelError(f"labels file {path} is empty")
    return tuple(labels)
