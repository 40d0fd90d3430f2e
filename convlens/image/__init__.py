"""Bytes to images, images to what a model sees, and back to bytes. Pillow and numpy, and tifffile for rare TIFFs.

``codec`` and ``preprocess`` hold the public functions. ``formats`` tells what bytes are; ``jpeg``, ``png``, ``gif`` and
``tiff`` read what must be known before Pillow may open them, and leave out what it does not need; ``bounds`` says how
many parts there may be. ``modes`` makes any Pillow mode RGB. ``bmp`` and ``tiff_samples`` read what Pillow refuses or
gets wrong; ``tiff_layout`` says which TIFFs these are. ``channels`` reads images of other channels than RGB, and
chooses what is shown of them.
"""

from __future__ import annotations

from convlens.image.channels import (
    ChannelImage,
    Picture,
    decode_channels,
    display_image,
    displayed,
    displayed_mean,
    encode_npy,
    file_limits,
    read_channels,
    read_shown,
)
from convlens.image.codec import Limits, decode, encode_jpeg, encode_png, read, read_bytes, thumbnail
from convlens.image.preprocess import Prepared, denormalise, normalise, prepare, view

__all__ = [
    "ChannelImage",
    "Limits",
    "Picture",
    "Prepared",
    "decode",
    "decode_channels",
    "denormalise",
    "display_image",
    "displayed",
    "displayed_mean",
    "encode_jpeg",
    "encode_npy",
    "encode_png",
    "file_limits",
    "normalise",
    "prepare",
    "read",
    "read_bytes",
    "read_channels",
    "read_shown",
    "thumbnail",
    "view",
]
