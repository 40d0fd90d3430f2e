"""Photographs that come with packages: the demo explains some, the explorer offers them, galleries hold the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

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
CREDITS = {
    "chelsea.png": "Stefan van der Walt, CC0",
    "coffee.png": "Rachel Michetti, CC0",
    "rocket.jpg": "SpaceX, public domain",
    "motorcycle_left.png": "Middlebury 2014 stereo benchmark, Scharstein et al.",
    "astronaut.png": "NASA, public domain",
}
# The others of scikit-image and scikit-learn. Not the latter's portraits: faces are nobody's sample.
OTHERS = {
    "camera.png": "photographer",
    "motorcycle_right.png": "motorcycle, from another place",
    "china.jpg": "temple",
    "flower.jpg": "flower",
    "horse.png": "horse, a silhouette",
    "coins.png": "coins",
    "clock_motion.png": "clock, moving",
    "page.png": "printed page",
    "text.png": "handwriting",
    "brick.png": "brick",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "moon.png": "moon",
    "hubble_deep_field.jpg": "stars",
    "retina.jpg": "retina",
    "microaneurysms.png": "retina, a detail",
    "ihc.png": "tissue",
    "cell.png": "cell",
    "phantom.png": "phantom of a head",
    "color.png": "colour chart",
    "logo.png": "logo",
}


def photographs() -> dict[str, Path]:
    """The demo's images by file name; raises as :func:`skimage_data`."""
    return {name: skimage_data() / name for name in PHOTOGRAPHS}


def skimage_data() -> Path:
    """scikit-image's folder of data; ConvLensError where it is not installed."""
    try:
        import skimage
    except ImportError as error:
        raise ConvLensError("the demo's photographs come with scikit-image; pip install 'convlens[demo]'") from error
    return Path(skimage.__file__).parent / "data"


def other_photographs() -> Iterator[tuple[str, str, Image.Image]]:
    """(id, label, image) of each of the others; none of them is one that the demo explains."""
    for name, label in OTHERS.items():
        yield name, label, image.read(photograph(name)).convert("RGB")


def photograph(name: str) -> Path:
    """The file of that name in scikit-image's or scikit-learn's folder of images; raises as :func:`skimage_data`."""
    path = skimage_data() / name
    if path.exists():
        return path
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "images" / name
