"""The effective receptive field: the square that the gradient of a unit really falls into (Luo et al. 2016).

Of a deep unit it is much smaller than the receptive field, which may be larger than the image (arXiv:1701.04128).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from convlens.inspection.receptive_field import Box
from convlens.types import Floats

_SHARE = 0.95


def effective_side(gradients: Iterable[Floats], boxes: Sequence[Box]) -> int | None:
    """The side of the square around the middle of a unit's box that holds 95 % of its squared gradient, on average.

    ``gradients`` (C, H, W) are those of units in their images, ``boxes`` the units' receptive fields. A unit whose
    gradient is 0 counts for nothing; None where all are.
    """
    energies = [_energy_by_side(grad_CHW, box) for grad_CHW, box in zip(gradients, boxes, strict=True)]
    shares = [energy_S / energy_S.sum() for energy_S in energies if energy_S.sum() > 0]
    if not shares:
        return None
    longest = max(map(len, shares))
    mean_S = np.mean([np.pad(share_S, (0, longest - len(share_S))) for share_S in shares], axis=0)
    # The last bits of a sum of shares may be missing.
    return int(np.argmax(mean_S.cumsum() >= _SHARE - 1e-9))


def effective_box(box: Box, side: int | None) -> Box:
    """The square of that side around the middle of the box; the box itself where it is no longer, and for None."""
    top, left, bottom, right = box
    if side is None:
        return box
    top, bottom = _shortened(top, bottom, side)
    left, right = _shortened(left, right, side)
    return top, left, bottom, right


def _shortened(first: int, end: int, side: int) -> tuple[int, int]:
    if end - first <= side:
        return first, end
    begin = (first + end - side) // 2
    return begin, begin + side


def _energy_by_side(grad_CHW: Floats, box: Box) -> Floats:
    """The squared gradient by the side of the smallest square around the box's middle that holds its pixel."""
    top, left, bottom, right = box
    height, width = grad_CHW.shape[1:]
    # Twice the distance from the middle to a pixel's centre, so that all are whole numbers.
    down_H = np.abs(2 * np.arange(height) + 1 - (top + bottom))
    across_W = np.abs(2 * np.arange(width) + 1 - (left + right))
    side_HW = np.maximum(down_H[:, None], across_W) + 1
    energy_HW = (grad_CHW.astype(np.float64) ** 2).sum(axis=0)
    return np.bincount(side_HW.ravel(), energy_HW.ravel()).astype(np.float64)
