"""How an image becomes a network's input: sizes, filter and normalisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from convlens.errors import ModelError
from convlens.models.model_id import ModelOptions
from convlens.types import CropMode, Interpolation

_INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to ``resize``, cut ``crop``×``crop`` from the centre, scale to 0..1, then (x - mean) / std
    per channel. Sizes are in pixels.
    """

    crop: int
    resize: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: CropMode = "center"
    crop_width: int | None = None
    resize_width: int | None = None
    display_channels: tuple[int, ...] = ()

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.crop, self.crop_width or self.crop

    def with_options(self, options: ModelOptions) -> Preprocessing:
        """With the options that are set in place of the model's own values.

        A ``size`` without a ``resize`` keeps the model's proportion of crop to resize. Raises ModelError where the crop
        would be larger than the resized image, and for an unknown interpolation.
        """
        crop = options.size or self.crop
        resize = options.resize or max(crop, round(self.resize * crop / self.crop))
        if resize < crop:
            raise ModelError(f"resize={resize} is smaller than size={crop}; a crop cannot be larger than the image")
        return replace(
            self,
            crop=crop,
            resize=resize,
            interpolation=parse_interpolation(options.interpolation or self.interpolation),
            mean=options.mean or self.mean,
            std=options.std or self.std,
        )


IMAGENET = Preprocessing(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def parse_interpolation(name: str) -> Interpolation:
    """The filter of that name; raises ModelError for one that is not supported."""
    if name not in _INTERPOLATIONS:
        raise ModelError(f"interpolation {name!r} is not known; there are: {', '.join(_INTERPOLATIONS)}")
    return name  # type: ignore[return-value]  # narrowed by the check above, which mypy does not follow


def parse_crop_mode(name: str) -> CropMode:
    """The crop mode of that name; raises ModelError for one that is not supported."""
    if name not in get_args(CropMode):
        raise ModelError(f"crop_mode {name!r} is not known; there are: {', '.join(get_args(CropMode))}")
    return name  # type: ignore[return-value]  # narrowed by the check above, which mypy does not follow
