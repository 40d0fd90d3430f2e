"""How few pixels hold a map's relevance."""

from __future__ import annotations

import numpy as np

from convlens.types import Floats


def sparseness(relevance_HW: Floats) -> float:
    """The Gini index of the absolute relevance (Chalasani et al. 2020, arXiv:1810.06583).

    0 where all pixels count alike, also where none does; 1 - 1 / (H·W) where one counts alone. Ours, as captum has none
    and Quantus's ``Sparseness``, which gives the same, is a dependency for three lines.
    """
    sorted_P = np.sort(np.abs(np.asarray(relevance_HW, np.float64)).reshape(-1))
    total, pixels = sorted_P.sum(), sorted_P.size
    rank_P = np.arange(1, pixels + 1)
    return float((2 * rank_P - pixels - 1) @ sorted_P / (pixels * total)) if total else 0.0
