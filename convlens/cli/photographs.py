"""scikit-image's own photographs: the demo's pictures, and other views of them for its gallery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

from convlens import image
from convlens.errors import ConvLensError

# Name of the file in skimage/data -> what it shows.
PHOTOGRAPHS = {
    "chelsea.png": "cat",
    "coffee.png": "espresso",
    "rocket.jpg": "rocket",
    "motorcycle_left.png": "motorcycle",
    "astronaut.png": "astronaut",
}
_MORE = {
    "brick.png": "brick",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "coins.png": "coins",
    "hubble_deep_field.jpg": "stars",
}


def photographs() -> dict[str, Path]:
    """The demo's pictures by file name."""
    return {name: _folder() / name for name in PHOTOGRAPHS}


def gallery_views() -> Iterator[tuple[str, str, Image.Image]]:
    """(id, label, picture) of every view: none is a picture of the demo itself, all differ from it pixel by pixel."""
    for name, label in (PHOTOGRAPHS | _MORE).items():
        picture = image.read(_folder() / name)
        for view, seen in _views(picture).items():
            yield f"{Path(name).stem}-{view}", label, seen


def _views(picture: Image.Image) -> dict[str, Image.Image]:
    width, height = picture.size
    return {
        "mirrored": ImageOps.mirror(picture),
        "left": picture.crop((0, 0, int(width * 0.7), height)),
        "right": picture.crop((int(width * 0.3), 0, width, height)),
        "close": ImageOps.mirror(picture.crop((width // 5, height // 5, width - width // 5, height - height // 5))),
        "dark": ImageEnhance.Brightness(ImageOps.mirror(picture)).enhance(0.6),
    }


def _folder() -> Path:
    try:
        import skimage
    except ImportError as error:
        raise ConvLensError("the demo's photographs come with scikit-image; pip install 'convlens[demo]'") from error
    return Path(skimage.__file__).parent / "data"
