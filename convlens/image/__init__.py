"""Bytes to pictures, pictures to what a model sees, and back to bytes. Pillow and numpy only.

``formats`` names what bytes are; ``headers`` and ``directory`` read what must be known before Pillow may; ``modes``
makes any mode RGB; ``decoding``, ``preparing`` and ``encoding`` hold the public functions.
"""

from __future__ import annotations

from convlens.image.codec import Limits, decode, encode_jpeg, encode_png, read, read_bytes, thumbnail
from convlens.image.preprocess import Prepared, denormalise, normalise, prepare, view

__all__ = [
    "Limits",
    "Prepared",
    "decode",
    "denormalise",
    "encode_jpeg",
    "encode_png",
    "normalise",
    "prepare",
    "read",
    "read_bytes",
    "thumbnail",
    "view",
]
