"""From raw values to one relevance per pixel, the order of the pixels by it, and how few of them hold it."""

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


def sparseness(relevance_HW: Floats) -> float:
    """The Gini index of the absolute relevance (Chalasani et al. 2020, arXiv:1810.06583).

    0 where all pixels count alike, also where none does; 1 - 1 / (H·W) where one counts alone. Ours, as captum has none
    and Quantus's ``Sparseness``, which gives the same, is a dependency for three lines.
    """
    sorted_P = np.sort(np.abs(np.asarray(relevance_HW, np.float64)).reshape(-1))
    total, pixels = sorted_P.sum(), sorted_P.size
    rank_P = np.arange(1, pixels + 1)
    return float((2 * rank_P - pixels - 1) @ sorted_P / (pixels * total)) if total else 0.0
