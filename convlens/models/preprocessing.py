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
    """Resize, cut or border by ``crop_mode``, scale to 0..1, then (x - mean) / std per channel; fields as in ModelSpec.

    Raises ModelError where the crop would be larger than the resized image, for other numbers of means than of standard
    deviations, and for display channels that there are not.
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

    def __post_init__(self) -> None:
        sizes = zip(self.resize_size, self.input_size, strict=True)
        if self.crop_mode != "border" and any(resize < crop for resize, crop in sizes):
            raise ModelError(
                f"resize={_sides(self.resize_size)} is smaller than size={_sides(self.input_size)}; a crop cannot be "
                "larger than the image"
            )
        if len(self.mean) != len(self.std):
            raise ModelError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; give as many of both as the network has "
                "channels, or one for all of them"
            )
        shown = self.display_channels
        if len(shown) not in (0, 1, 3) or not all(0 <= channel < len(self.mean) for channel in shown):
            raise ModelError(
                f"display_channels={','.join(map(str, shown))} should be one channel or three, each within "
                f"0..{len(self.mean) - 1}"
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.crop, self.crop_width or self.crop

    @property
    def resize_size(self) -> tuple[int, int]:
        """Height and width that an image is resized to; where both are the same and it is cropped, the short side."""
        return self.resize, self.resize_width or self.resize

    def with_options(self, options: ModelOptions) -> Preprocessing:
        """With the options that are set in place of the model's own values.

        A ``size`` without a ``resize`` keeps the model's proportion of crop to resize, on each side. Raises ModelError
        as the class does, for an unknown interpolation, and for other numbers of channels than there are means.
        """
        size = options.size or self.input_size
        resize = options.resize or _in_proportion(self, size)
        given = [len(values) for values in (options.mean, options.std) if values is not None and len(values) > 1]
        channels = options.channels or (given[0] if given else len(self.mean))
        return replace(
            self,
            crop=size[0],
            crop_width=_if_other(size),
            resize=resize[0],
            resize_width=_if_other(resize),
            crop_mode=options.crop_mode or self.crop_mode,
            display_channels=self.display_channels if options.display_channels is None else options.display_channels,
            interpolation=parse_interpolation(options.interpolation or self.interpolation),
            mean=_for_channels("mean", options.mean or self.mean, channels),
            std=_for_channels("std", options.std or self.std, channels),
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


def require_normalisation(options: ModelOptions, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and std for three channels; for any other number those of the options, or ModelError."""
    if channels == 3:
        return IMAGENET.mean, IMAGENET.std
    if options.mean is None or options.std is None:
        raise ModelError(
            f"the network takes {channels} channels; add mean= and std= of as many numbers on the 0..1 scale, or one "
            "for all of them"
        )
    return _for_channels("mean", options.mean, channels), _for_channels("std", options.std, channels)


def _for_channels(key: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number for each channel; one alone is meant for all of them."""
    if len(values) == 1:
        return values * channels
    if len(values) != channels:
        raise ModelError(f"{key} has {len(values)} numbers for {channels} channels; give one for each, or one for all")
    return values


def _in_proportion(preprocessing: Preprocessing, size: tuple[int, int]) -> tuple[int, int]:
    height, width = (
        round(resize * side / crop)
        for resize, side, crop in zip(preprocessing.resize_size, size, preprocessing.input_size, strict=True)
    )
    return (height, width) if preprocessing.crop_mode == "border" else (max(size[0], height), max(size[1], width))


def _if_other(sides: tuple[int, int]) -> int | None:
    """The width, where it is another than the height."""
    return None if sides[0] == sides[1] else sides[1]


def _sides(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}×{size[1]}"
