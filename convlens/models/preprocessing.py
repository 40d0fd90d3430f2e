"""How a picture is made into what a network expects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from convlens.errors import ModelError
from convlens.models.model_id import ModelOptions
from convlens.types import Interpolation

INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to ``resize``, cut ``crop``×``crop`` from the centre, scale to 0..1, then (x - mean) / std
    per channel.
    """

    crop: int
    resize: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Preprocessing(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def interpolation(word: str) -> Interpolation:
    """The word as one of ours; raises ModelError for any other."""
    if word not in INTERPOLATIONS:
        raise ModelError(f"interpolation {word!r} is not known; there are: {', '.join(INTERPOLATIONS)}")
    return word  # type: ignore[return-value]  # narrowed by the check above, which mypy does not follow


def adjusted(feed: Preprocessing, options: ModelOptions) -> Preprocessing:
    """The feed with the options that were given in its stead.

    A ``size`` without a ``resize`` keeps the model's own proportion of crop to resize. Raises ModelError when the crop
    would be larger than the resized picture.
    """
    crop = options.size or feed.crop
    resize = options.resize or max(crop, round(feed.resize * crop / feed.crop))
    if resize < crop:
        raise ModelError(f"resize={resize} is smaller than size={crop}; a crop cannot be larger than the picture")
    return replace(
        feed,
        crop=crop,
        resize=resize,
        interpolation=interpolation(options.interpolation or feed.interpolation),
        mean=options.mean or feed.mean,
        std=options.std or feed.std,
    )
