"""A picture file as an embedder takes it, or the reason why there is none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from convlens import image
from convlens.errors import ImageError
from convlens.types import ModelSpec


@dataclass(frozen=True)
class Ready:
    """``pixels`` is what the embedder takes: uint8 (H, W, C), or float32 (C, H, W) normalised.

    ``size`` (in bytes) and ``sha256`` are the file's, 0 and empty where there was none; ``width`` and ``height`` the
    upright picture's. ``thumbnail`` is a JPEG, empty where none was wanted.
    """

    id: str
    pixels: NDArray[Any]
    width: int
    height: int
    size: int = 0
    sha256: str = ""
    thumbnail: bytes = b""


@dataclass(frozen=True)
class Unreadable:
    """A picture that has no features, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Reader:
    """Makes pictures ready for one model. ``normalised`` on the host; else the graph does it, from uint8.

    ``thumbnail_side`` is in pixels, 0 makes none. Safe to use from several threads; only the file's bytes, one picture
    at its full size and the result are held by a call.
    """

    spec: ModelSpec
    normalised: bool
    thumbnail_side: int = 0

    def file(self, named: tuple[str, Path]) -> Ready | Unreadable:
        """(id, path) of a file. Its hash is that of the very bytes that were decoded."""
        id, path = named
        try:
            data = image.read_bytes(path)
            picture = image.decode(data)
        except ImageError as error:
            return Unreadable(id, error.message.removeprefix(f"{path}: "))
        return self.picture(id, picture, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def picture(self, id: str, picture: Image.Image, *, size: int = 0, sha256: str = "") -> Ready:
        """An RGB picture that is in memory already."""
        view_HWC, _ = image.view(picture, self.spec)
        pixels = image.normalise(view_HWC, self.spec) if self.normalised else view_HWC
        small = image.thumbnail(picture, side=self.thumbnail_side) if self.thumbnail_side else b""
        return Ready(id, pixels, picture.width, picture.height, size, sha256, small)
