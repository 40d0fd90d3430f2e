"""An image to what a model sees, and back: resize, crop or border, normalise, exactly as torchvision and timm do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlens.errors import ModelError
from convlens.image.channels import ChannelImage, Picture, displayed, require_channels
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

    ``x_CHW`` is float32 and normalised. ``view_HWC`` are the same pixels in all channels of the model: uint8, or
    float32 of 0..1 where the image is deeper; ``display_HWC`` is the view as RGB, to be looked at. ``box`` is the
    view's place in the original upright image, beyond its sides where the view has a border.
    """

    x_CHW: NDArray[np.float32]
    view_HWC: NDArray[Any]
    box: Box
    display_HWC: Bytes8


@dataclass(frozen=True)
class ResizePlan:
    """``size`` (width, height) to resize to; ``left`` and ``top`` of the view in that, negative for a border."""

    size: tuple[int, int]
    left: int
    top: int


def prepare(image: Picture, spec: ModelSpec) -> Prepared:
    """Resized, cut or bordered by ``spec.crop_mode``, and normalised: as torchvision and timm do it, bit for bit.

    center: the short side becomes ``spec.resize`` (of rectangles both sides cover ``spec.resize_size``), the middle is
    cut. squash: both sides become ``spec.resize_size``, whatever the proportions, the middle is cut. border: the image
    fits into ``spec.resize_size``, and the training mean lies around it.

    Only where the resized image would exceed 16.7 million pixels (ribbons) is the middle alone computed, then equal
    within one level. Small images are enlarged. ``image`` is RGB, such as decode returns, which a model of one channel
    sees as grey (ITU-R 601); or a ChannelImage. Raises ModelError where an image cut out would be larger than the
    resized one, ImageError for an image of other channels, ValueError for another mode.
    """
    view_HWC, box = view(image, spec)
    return Prepared(normalise(view_HWC, spec), view_HWC, box, displayed(view_HWC, spec))


def view(image: Picture, spec: ModelSpec) -> tuple[NDArray[Any], Box]:
    """``view_HWC`` and ``box`` of :func:`prepare`, for callers that normalise elsewhere."""
    require_channels(image, spec)
    (height, width), plan = spec.input_size, resize_plan(image.size, spec)
    box = _source_box(image.size, plan.size, (plan.left, plan.top, plan.left + width, plan.top + height))
    middle_only = spec.crop_mode == "center" and plan.size[0] * plan.size[1] > _LARGEST_RESIZED
    planes = _planes(image, spec)
    fills = _fills(planes, spec)
    views = [
        _resize_box(plane, box, spec) if middle_only else _framed(plane, plan, fill, spec)
        for plane, fill in zip(planes, fills, strict=True)
    ]
    view_HWC = np.concatenate([np.asarray(each).reshape(height, width, -1) for each in views], axis=2)
    # Filters with negative lobes overshoot; of 8 bits Pillow cuts that off itself.
    return (view_HWC if view_HWC.dtype == np.uint8 else view_HWC.clip(0, 1)), box


def _planes(image: Picture, spec: ModelSpec) -> list[Image.Image]:
    """What Pillow resizes: the image itself where it is one of its own, else each channel alone."""
    if isinstance(image, ChannelImage):
        return [Image.fromarray(image.values_HWC[..., n].copy()) for n in range(image.channels)]
    return [image.convert("L")] if spec.channels == 1 else [image]


def _fills(planes: list[Image.Image], spec: ModelSpec) -> list[Any]:
    """The training mean as pixels of each plane."""
    levels = tuple(round(255 * mean) for mean in spec.mean)
    if planes[0].mode == "RGB":
        return [levels]
    return list(spec.mean if planes[0].mode == "F" else levels)


def resize_plan(size: tuple[int, int], spec: ModelSpec) -> ResizePlan:
    """What becomes of an image of ``size`` (width, height); ModelError as :func:`prepare` raises it."""
    (crop_height, crop_width), (resize_height, resize_width) = spec.input_size, spec.resize_size
    if spec.crop_mode != "border" and (resize_height < crop_height or resize_width < crop_width):
        raise ModelError(
            f"{spec.name}: resize={_sides(spec.resize_size)} is below crop={_sides(spec.input_size)}, the crop would "
            "need padding"
        )
    if spec.crop_mode == "squash":
        width, height = resize_width, resize_height
    elif spec.crop_mode == "center" and resize_height == resize_width:
        width, height = _resized_size(size, resize_height)
    else:
        ratios = size[1] / resize_height, size[0] / resize_width
        # As timm's ResizeKeepRatio: all of the target covered, or the image within it.
        ratio = min(ratios) if spec.crop_mode == "center" else max(ratios)
        width, height = (max(1, round(side / ratio)) for side in size)
    return ResizePlan((width, height), _offset(width, crop_width), _offset(height, crop_height))


def _offset(length: int, crop: int) -> int:
    # Where there is a border it is torchvision's and timm's, the smaller half first; a cut is rounded half to even.
    return -((crop - length) // 2) if crop > length else round((length - crop) / 2.0)


def _framed(plane: Image.Image, plan: ResizePlan, fill: Any, spec: ModelSpec) -> Image.Image:
    """The plane resized, and its view cut out, with ``fill`` where the view reaches beyond it."""
    resized = plane.resize(plan.size, _FILTERS[spec.interpolation])
    height, width = spec.input_size
    inside = (max(0, plan.left), max(0, plan.top), plan.left + width, plan.top + height)
    cut = resized.crop((*inside[:2], min(inside[2], resized.width), min(inside[3], resized.height)))
    if cut.size == (width, height):
        return cut
    framed = Image.new(plane.mode, (width, height), fill)
    framed.paste(cut, (max(0, -plan.left), max(0, -plan.top)))
    return framed


def normalise(view_HWC: NDArray[Any], spec: ModelSpec) -> NDArray[np.float32]:
    """A view to the model's float32 input: (value - mean) / std, channels first; of uint8 the value is by 255."""
    if view_HWC.dtype not in (np.uint8, np.float32) or view_HWC.ndim != 3 or view_HWC.shape[2] != spec.channels:
        raise ValueError(
            f"view is {view_HWC.dtype} of shape {view_HWC.shape}; need uint8, or float32 of 0..1, (H, W, "
            f"{spec.channels})"
        )
    x_CHW = view_HWC.transpose(2, 0, 1).astype(np.float32, order="C")
    if view_HWC.dtype == np.uint8:
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
    height, width = spec.input_size
    margin = math.ceil(_SUPPORT * max(1.0, (box[2] - box[0]) / width))
    left, top = max(0, int(box[0]) - margin), max(0, int(box[1]) - margin)
    right, bottom = min(image.width, math.ceil(box[2]) + margin), min(image.height, math.ceil(box[3]) + margin)
    near = image.crop((left, top, right, bottom))
    inner = (box[0] - left, box[1] - top, min(box[2] - left, near.width), min(box[3] - top, near.height))
    return near.resize((width, height), _FILTERS[spec.interpolation], box=inner)


def _sides(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}×{size[1]}"
