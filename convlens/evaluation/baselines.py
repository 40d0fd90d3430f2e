"""Maps that know nothing of the network: what a method must beat to have shown anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from convlens.errors import RequestError, near_matches
from convlens.types import Floats
from convlens.visualization import smoothed

_BLOB = 1 / 14  # a blob's sigma in sides of the image: 16 of 224 pixels, as wide as a cell of RISE's masks


def baseline_map(name: str, x_CHW: Floats, *, id: str, seed: int) -> Floats:
    """The relevance (H, W) that a baseline gives an image (C, H, W); random ones are drawn by ``id`` and ``seed``."""
    return np.asarray(_BASELINES[name](x_CHW, _generator(id, seed)), np.float64)


def require_baselines(names: Iterable[str]) -> tuple[str, ...]:
    """The same names, each once; RequestError for an unknown one."""
    for name in names:
        if name not in _BASELINES:
            raise RequestError(
                f"no baseline {name!r}{near_matches(name, _BASELINES)}; there are: {', '.join(_BASELINES)}",
                field="baselines",
            )
    return tuple(dict.fromkeys(names))


def _generator(id: str, seed: int) -> np.random.Generator:
    # By the image's id, so that an image gets the same map whichever others are evaluated with it.
    digest = hashlib.sha256(f"{seed}\0{id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _random_pixels(x_CHW: Floats, generator: np.random.Generator) -> Floats:
    return generator.random(x_CHW.shape[-2:])


def _random_blobs(x_CHW: Floats, generator: np.random.Generator) -> Floats:
    height, width = x_CHW.shape[-2:]
    return smoothed(generator.standard_normal((height, width)), sigma=_BLOB * min(height, width))


def _centre(x_CHW: Floats, _: np.random.Generator) -> Floats:
    """How near a pixel lies to the centre."""
    rows, columns = (np.linspace(-1, 1, side) for side in x_CHW.shape[-2:])
    return -np.hypot(rows[:, None], columns[None])


def _edges(x_CHW: Floats, _: np.random.Generator) -> Floats:
    """Sobel's gradient of the channels' mean."""
    grey_HW = np.pad(x_CHW.mean(0, dtype=np.float64), 1, mode="edge")
    slope = grey_HW[:, 2:] - grey_HW[:, :-2]
    across = slope[:-2] + 2 * slope[1:-1] + slope[2:]
    slope = grey_HW[2:] - grey_HW[:-2]
    down = slope[:, :-2] + 2 * slope[:, 1:-1] + slope[:, 2:]
    return np.asarray(np.hypot(across, down))


_BASELINES: dict[str, Callable[[Any, np.random.Generator], Floats]] = {
    "random pixels": _random_pixels,
    "random blobs": _random_blobs,
    "centre": _centre,
    "edges": _edges,
}
BASELINES = tuple(_BASELINES)
