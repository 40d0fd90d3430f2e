"""How a model's name is written: ``source:model[:variant][?key=value&key=value]``.

What may stand behind the ``?`` of a model's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

from convlens.errors import ModelError, near_matches
from convlens.models.labels import read_labels

UNTRAINED = "untrained"


@dataclass(frozen=True)
class ModelName:
    """One loadable name, and whether its trained weights are on this machine already.

    ``is_cnn_classifier`` is False for transformers and the like, and for networks without classes, as far as that is
    known before the model is loaded.
    """

    name: str
    weights_at_hand: bool
    is_cnn_classifier: bool = True


@dataclass(frozen=True)
class ModelId:
    """A name taken apart. ``rest`` is what stands between the source and the options; ``source`` is empty in a bare
    name.
    """

    text: str
    source: str
    rest: str
    options: Mapping[str, str]

    @property
    def head(self) -> str:
        """The name without its options."""
        return f"{self.source}:{self.rest}"


def parse(text: str) -> ModelId:
    """Takes a name apart; ``%26`` and the like in an option's value stand for the character itself.

    Raises ModelError for an option without a value, or one given twice.
    """
    head, _, query = text.partition("?")
    source, colon, rest = head.partition(":")
    if not colon:
        source, rest = "", head
    return ModelId(text, source.strip(), rest.strip(), MappingProxyType(_options(text, query)))


def split_variant(name: ModelId) -> tuple[str, str]:
    """``("resnet50", "IMAGENET1K_V2")`` of ``torchvision:resnet50:IMAGENET1K_V2``; the variant may be empty."""
    model, _, variant = name.rest.partition(":")
    if not model or ":" in variant:
        raise ModelError(f"{name.text!r} should read {name.source}:NAME or {name.source}:NAME:VARIANT")
    return model, variant


def _options(text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise ModelError(f"{text!r}: {pair!r} should read key=value")
        if key in options:
            raise ModelError(f"{text!r}: {key!r} is given twice")
        options[key] = unquote(value)
    return options


@dataclass(frozen=True)
class ModelOptions:
    """``weights`` and ``labels`` are files; ``size`` and ``resize`` pixels; ``mean`` and ``std`` on the 0..1 scale.

    None: as the model's source has it.
    """

    weights: Path | None = None
    labels: tuple[str, ...] | None = None
    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None


def read_options(name: ModelId) -> ModelOptions:
    """Reads the options of a name, label file included; raises ModelError for unknown keys and unreadable values."""
    known = [field.name for field in fields(ModelOptions)]
    for key in name.options:
        if key not in known:
            raise ModelError(
                f"{name.text!r}: no option {key!r}; there are: {', '.join(known)}{near_matches(key, known)}"
            )
    given = name.options
    return ModelOptions(
        weights=Path(given["weights"]).expanduser() if "weights" in given else None,
        labels=read_labels(given["labels"]) if "labels" in given else None,
        size=_pixels(name, "size"),
        resize=_pixels(name, "resize"),
        mean=_channels(name, "mean"),
        std=_channels(name, "std"),
        interpolation=given.get("interpolation"),
    )


def _pixels(name: ModelId, key: str) -> int | None:
    text = name.options.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise ModelError(f"{name.text!r}: {key}={text} should be a whole number of pixels, 1..4096")
    return int(text)


def _channels(name: ModelId, key: str) -> tuple[float, ...] | None:
    text = name.options.get(key)
    if text is None:
        return None
    values = _floats(text)
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)) or (key == "std" and min(values) <= 0):
        raise ModelError(
            f"{name.text!r}: {key}={text} should be three numbers, such as .5,.5,.5, or one for all channels"
        )
    return values if len(values) == 3 else values * 3


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
