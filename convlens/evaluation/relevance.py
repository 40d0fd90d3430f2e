"""From raw values to one relevance per pixel, and the order of the pixels by it."""

from __future__ import annotations

import numpy as np

from convlens.explain.registry import Drawing
from convlens.types import Floats, Ints
from convlens.visualization import abs_max, signed_sum


def relevance(values_CHW: Floats, drawing: Drawing) -> Floats:
    """One value a pixel (H, W), as the method's map is drawn.

    The signed sum over the channels for methods of signed values, whose evidence against the class ranks last; the
    largest absolute value for those of magnitudes and gradients.
    """
    reduce = signed_sum if drawing == "signed" else abs_max
    return np.asarray(reduce(values_CHW))


def pixel_order(map_HW: Floats, *, seed: int = 0) -> Ints:
    """The pixels' flat positions (H·W,), the most relevant first; equal ones in an order drawn by ``seed``.

    Large parts of a map can be equal, such as those that a ReLU made 0: their order in memory would remove them row by
    row from the top.
    """
    values = np.asarray(map_HW).reshape(-1)
    shuffled = np.random.default_rng(seed).permutation(values.size)
    return np.asarray(shuffled[np.argsort(-values[shuffled], kind="stable")])
