"""An image to what a model sees, and back: resize, centre crop, normalise, exactly as torchvision does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens.errors import ModelError
from convlens.types import Box, Bytes8, Interpolation, ModelSpec

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# A ribbon of 20000 x 2 pixels would be resized to 2560000 x 256, 2.6 GB, to keep a square of its middle.
_LARGEST_RESIZED = 2**24
_SUPPORT = 4  # source pixels; above Lanczos's 3, per unit of scale


@dataclass(frozen=True)
class Prepared:
    """An image as the model sees it.

    ``x_CHW`` is float32 and normalised, ``view_HWC`` the same pixels as uint8 RGB, ``box`` the view's place in the
    original upright image.
    """

    x_CHW: NDArray[np.float32]
    view_HWC: Bytes8
    box: Box


def prepare(image: Image.Image, spec: ModelSpec) -> Prepared:
    """Short side to ``spec.resize``, centre crop of ``spec.crop``, normalised: torchvision's transforms, bit for bit.

    Only where the resized image would exceed 16.7 million pixels (ribbons) is the middle alone computed, then equal
    within one level. Small images are enlarged. ``image`` is RGB, such as decode returns. Raises ModelError where
    ``spec.resize`` is below ``spec.crop``, ValueError for another mode.
    """
    view_HWC, box = view(image, spec)
    return Prepared(normalise(view_HWC, spec), view_HWC, box)


def view(image: Image.Image, spec: ModelSpec) -> tuple[Bytes8, Box]:
    """``view_HWC`` and ``box`` of :func:`prepare`, for callers that normalise elsewhere."""
    if image.mode != "RGB":
        raise ValueError(f"image has mode {image.mode}; prepare needs RGB")
    if spec.resize < spec.crop:
        raise ModelError(f"{spec.name}: resize={spec.resize} is below crop={spec.crop}, the crop would need padding")
    width, height = _resized_size(image.size, spec.resize)
    # torchvision rounds half to even here, as Python does.
    left, top = round((width - spec.crop) / 2.0), round((height - spec.crop) / 2.0)
    box = _source_box(image.size, (width, height), (left, top, left + spec.crop, top + spec.crop))
    if width * height > _LARGEST_RESIZED:
        return np.array(_resize_box(image, box, spec)), box
    resized = image.resize((width, height), _FILTERS[spec.interpolation])
    return np.array(resized.crop((left, top, left + spec.crop, top + spec.crop))), box


def normalise(view_HWC: Bytes8, spec: ModelSpec) -> NDArray[np.float32]:
    """uint8 RGB to the model's float32 input: (value / 255 - mean) / std, channels first."""
    if view_HWC.dtype != np.uint8 or view_HWC.ndim != 3 or view_HWC.shape[2] != len(spec.mean):
        raise ValueError(f"view is {view_HWC.dtype} of shape {view_HWC.shape}; need uint8 (H, W, {len(spec.mean)})")
    x_CHW = view_HWC.transpose(2, 0, 1).astype(np.float32, order="C")
    x_CHW /= np.float32(255)
    x_CHW -= _per_channel(spec.mean)
    x_CHW /= _per_channel(spec.std)
    return x_CHW


def denormalise(x_CHW: NDArray[np.floating[Any]], spec: ModelSpec) -> Bytes8:
    """The inverse of :func:`normalise`, rounded and clipped to 0..255; ValueError where a value is not finite."""
    if x_CHW.ndim != 3 or x_CHW.shape[0] != len(spec.mean) or not np.isfinite(x_CHW).all():
        raise ValueError(f"x has shape {x_CHW.shape}; need finite ({len(spec.mean)}, H, W)")
    pixels_CHW = (x_CHW * _per_channel(spec.std) + _per_channel(spec.mean)) * 255
    view_HWC: Bytes8 = np.rint(pixels_CHW.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)
    return view_HWC


def _per_channel(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)[:, None, None]


def _resized_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    width, height = size
    # int of a true division and not //, as torchvision: the float may round up to a whole number.
    return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)


def _source_box(size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int, int, int]) -> Box:
    across, down = size[0] / resized[0], size[1] / resized[1]
    return crop[0] * across, crop[1] * down, crop[2] * across, crop[3] * down


def _resize_box(image: Image.Image, box: Box, spec: ModelSpec) -> Image.Image:
    """The resized ``box`` alone."""
    # What the filter cannot reach is cut off first: Pillow keeps boxes as float32, which would misplace them far out.
    margin = math.ceil(_SUPPORT * max(1.0, (box[2] - box[0]) / spec.crop))
    left, top = max(0, int(box[0]) - margin), max(0, int(box[1]) - margin)
    right, bottom = min(image.width, math.ceil(box[2]) + margin), min(image.height, math.ceil(box[3]) + margin)
    near = image.crop((left, top, right, bottom))
    inner = (box[0] - left, box[1] - top, min(box[2] - left, near.width), min(box[3] - top, near.height))
    return near.resize((spec.crop, spec.crop), _FILTERS[spec.interpolation], box=inner)
