"""How a model's name is written: ``source:model[:variant][?key=value&key=value]``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args
from urllib.parse import unquote

from convlens.errors import ModelError, near_matches
from convlens.models.labels import read_labels
from convlens.types import Activation, CropMode

UNTRAINED = "untrained"
UNREPEATABLE = ("refuse", "allow")
MEMORY = "memory"
"""The source in the name of a network that was wrapped in memory: ``memory:CLASS``."""
_LARGEST_SIDE = 4096  # pixels
_MOST_CHANNELS = 1024


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
    """The parts of a name. ``rest`` is what stands between the source and the options.

    ``source`` is empty in a name without one, which the loader refuses.
    """

    text: str
    source: str
    rest: str
    options: Mapping[str, str]

    @property
    def head(self) -> str:
        """The name without its options."""
        return f"{self.source}:{self.rest}"


def parse_model_id(text: str) -> ModelId:
    """The parts of a name; ``%26`` and the like in an option's value stand for the character itself.

    Raises ModelError for an option without a value, or one given twice.
    """
    head, _, query = text.partition("?")
    source, colon, rest = head.partition(":")
    if not colon:
        source, rest = "", head
    return ModelId(text, source.strip(), rest.strip(), MappingProxyType(_query_options(text, query)))


def _query_options(text: str, query: str) -> dict[str, str]:
    # Not urllib's parse_qsl: it takes a + for a space, drops options without a value, and keeps doubles.
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
    """``weights`` and ``labels`` are files; ``mean`` and ``std`` on the 0..1 scale, one number for all channels or as
    many as there are.

    ``weights_key`` chooses among the state dicts of a file that holds several, such as ``model_ema``.
    ``size`` and ``resize`` are height and width in pixels, ``channels`` how many the input has, ``display_channels``
    those shown as red, green and blue, or the one shown as grey.
    ``output`` names the entry of the network's output, ``activation`` what makes probabilities of logits;
    ``unrepeatable`` is "refuse" or "allow". None: as the model's source has it, or as is found out.
    """

    weights: Path | None = None
    weights_key: str | None = None
    labels: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    crop_mode: CropMode | None = None
    channels: int | None = None
    display_channels: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    output: str | None = None
    activation: Activation | None = None
    embedding_layer: str | None = None
    gradcam_layer: str | None = None
    unrepeatable: str = "refuse"


def parse_options(model_id: ModelId) -> ModelOptions:
    """The options of a name, the label file's content included.

    Raises ModelError for unknown keys, values that cannot be read, and as ``read_labels`` does.
    """
    known = [field.name for field in fields(ModelOptions)]
    for key in model_id.options:
        if key not in known:
            raise ModelError(
                f"{model_id.text!r}: no option {key!r}; there are: {', '.join(known)}{near_matches(key, known)}"
            )
    options = model_id.options
    if "weights_key" in options and "weights" not in options:
        raise ModelError(f"{model_id.text!r}: weights_key chooses a state dict in a file; give weights=FILE as well")
    return ModelOptions(
        weights=Path(options["weights"]).expanduser() if "weights" in options else None,
        weights_key=options.get("weights_key"),
        labels=read_labels(options["labels"]) if "labels" in options else None,
        size=_pixels(model_id, "size"),
        resize=_pixels(model_id, "resize"),
        crop_mode=_choice(model_id, "crop_mode", get_args(CropMode)),
        channels=_count(model_id, "channels"),
        display_channels=_channel_numbers(model_id, "display_channels"),
        mean=_channels(model_id, "mean"),
        std=_channels(model_id, "std"),
        interpolation=options.get("interpolation"),
        output=options.get("output"),
        activation=_choice(model_id, "activation", get_args(Activation)),
        embedding_layer=options.get("embedding_layer"),
        gradcam_layer=options.get("gradcam_layer"),
        unrepeatable=_choice(model_id, "unrepeatable", UNREPEATABLE) or "refuse",
    )


def input_channels(model_id: ModelId) -> int | None:
    """How many channels the options of a name ask for, by ``channels``, ``mean`` or ``std``; None: they do not say."""
    given = [_channels(model_id, key) for key in ("mean", "std")]
    return _count(model_id, "channels") or next((len(values) for values in given if values and len(values) > 1), None)


def _choice(model_id: ModelId, key: str, choices: tuple[str, ...]) -> Any:
    text = model_id.options.get(key)
    if text is not None and text not in choices:
        raise ModelError(
            f"{model_id.text!r}: {key}={text} is not known{near_matches(text, choices)}; "
            f"there are: {', '.join(choices)}"
        )
    return text


def _pixels(model_id: ModelId, key: str) -> tuple[int, int] | None:
    """Height and width of ``224`` or ``128x256``."""
    text = model_id.options.get(key)
    if text is None:
        return None
    sides = text.replace("×", "x").split("x")
    if len(sides) > 2 or not all(_is_whole(side, 1, _LARGEST_SIDE) for side in sides):
        raise ModelError(
            f"{model_id.text!r}: {key}={text} should be a whole number of pixels, 1..{_LARGEST_SIDE}, or two as "
            "HEIGHTxWIDTH"
        )
    return int(sides[0]), int(sides[-1])


def _count(model_id: ModelId, key: str) -> int | None:
    text = model_id.options.get(key)
    if text is not None and not _is_whole(text, 1, _MOST_CHANNELS):
        raise ModelError(f"{model_id.text!r}: {key}={text} should be a whole number, 1..{_MOST_CHANNELS}")
    return None if text is None else int(text)


def _channel_numbers(model_id: ModelId, key: str) -> tuple[int, ...] | None:
    text = model_id.options.get(key)
    if text is None:
        return None
    parts = text.split(",")
    if not all(_is_whole(part, 0, _MOST_CHANNELS) for part in parts):
        raise ModelError(f"{model_id.text!r}: {key}={text} should be one or three channels from 0 on, such as 3,2,1")
    return tuple(map(int, parts))


def _is_whole(text: str, first: int, last: int) -> bool:
    # isascii: isdigit and int alone take digits of every script. Longer numbers are none, and slow to read.
    return text.isascii() and text.isdigit() and len(text) < 10 and first <= int(text) <= last


def _channels(model_id: ModelId, key: str) -> tuple[float, ...] | None:
    text = model_id.options.get(key)
    if text is None:
        return None
    values = _floats(text)
    if not values or not all(map(math.isfinite, values)) or (key == "std" and min(values) <= 0):
        raise ModelError(
            f"{model_id.text!r}: {key}={text} should be a number for each channel, such as .5,.5,.5, or one for all; "
            "each std above 0"
        )
    return values


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()


def split_variant(model_id: ModelId) -> tuple[str, str]:
    """``("resnet50", "IMAGENET1K_V2")`` of ``torchvision:resnet50:IMAGENET1K_V2``; the variant may be empty."""
    model, _, variant = model_id.rest.partition(":")
    if not model or ":" in variant:
        raise ModelError(f"{model_id.text!r} should read {model_id.source}:NAME or {model_id.source}:NAME:VARIANT")
    return model, variant


def is_pretrained(model_id: ModelId, options: ModelOptions) -> bool:
    """Whether the source's own weights are meant; ModelError where ``untrained`` and ``weights=`` contradict."""
    untrained = split_variant(model_id)[1] == UNTRAINED
    if options.weights is not None and untrained:
        raise ModelError(
            f"{model_id.text!r} asks for untrained weights and for weights={options.weights}; leave one out"
        )
    return options.weights is None and not untrained
