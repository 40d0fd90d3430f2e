"""scikit-image's photographs, which the demo explains and the explorer offers as samples."""

from __future__ import annotations

from pathlib import Path

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
