"""Pictures to bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from convlens.types import Bytes8


def encode_png(picture_HWC: Bytes8, *, level: int = 1) -> bytes:
    """uint8 RGB as PNG; ``level`` trades time for size (0 stores, 9 packs tightest)."""
    with io.BytesIO() as file:
        _image(picture_HWC).save(file, "PNG", compress_level=level)
        return file.getvalue()


def encode_jpeg(picture_HWC: Bytes8, *, quality: int = 90) -> bytes:
    """uint8 RGB as JPEG, 1..95, with full colour resolution. For looking at only: numbers do not survive it."""
    return _jpeg(_image(picture_HWC), quality=quality, subsampling=0)


def thumbnail(picture: Image.Image, *, side: int) -> bytes:
    """The centre square of a picture as a JPEG of ``side`` x ``side`` pixels."""
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    square = picture.convert("RGB").crop((left, top, left + edge, top + edge))
    return _jpeg(square.resize((side, side), Image.Resampling.BICUBIC), quality=85, subsampling=2)


def _image(picture_HWC: Bytes8) -> Image.Image:
    if picture_HWC.dtype != np.uint8 or picture_HWC.ndim != 3 or picture_HWC.shape[2] != 3 or not picture_HWC.size:
        raise ValueError(f"picture is {picture_HWC.dtype} of shape {picture_HWC.shape}; need uint8 (H, W, 3)")
    return Image.fromarray(np.ascontiguousarray(picture_HWC))


def _jpeg(image: Image.Image, *, quality: int, subsampling: int) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=quality, subsampling=subsampling)
        return file.getvalue()
