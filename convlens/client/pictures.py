"""What may be sent as a picture."""

from __future__ import annotations

from os import PathLike

import numpy as np
from PIL import Image, ImageOps

from convlens import image
from convlens.image.modes import to_rgb

Picture = str | PathLike[str] | bytes | Image.Image

GREY = image.encode_png(np.full((8, 8, 3), 128, np.uint8))


def encoded(picture: Picture) -> bytes:
    """The bytes to send: a file's and encoded bytes as they are, an opened picture as PNG, upright by its EXIF.

    Raises ImageError for a file that cannot be read, ImageTooLargeError for one that no server takes.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        return image.encode_png(np.asarray(_upright(picture)))
    return image.read_bytes(picture)


def _upright(picture: Image.Image) -> Image.Image:
    """As RGB. The mode first: a turned copy has lost what a TIFF's tags say of its brightness."""
    picture.load()
    rgb = to_rgb(picture)
    rgb.info["exif"] = picture.getexif().tobytes()
    return ImageOps.exif_transpose(rgb)
