"""Whether a map points at the object: pointing game, energy inside, and overlap at the best threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from convlens.types import Floats


def localise(map_HW: Floats, mask_HW: NDArray[np.bool_], *, tolerance: float = 0.0) -> dict[str, float]:
    """``pointing_game``, ``energy_inside`` and ``best_iou`` of a map and the object's pixels, each 0..1.

    A map of one value throughout gets the object's share of the area in all three, or 0 of energy where that value is
    not positive; that share is also what a map drawn at random gets in the first two on average. ValueError for arrays
    of different or other shapes, for values that are not finite, and where there is no object.
    """
    values_HW, inside_HW = _checked(map_HW, mask_HW)
    return {
        "pointing_game": pointing_game(values_HW, inside_HW, tolerance=tolerance),
        "energy_inside": energy_inside(values_HW, inside_HW),
        "best_iou": best_iou(values_HW, inside_HW),
    }


def pointing_game(map_HW: Floats, mask_HW: NDArray[np.bool_], *, tolerance: float = 0.0) -> float:
    """1 where the map's largest value lies on the object, else 0 (Zhang et al. 2016, arXiv:1608.00507).

    Of several largest values it is the share that lies there. ``tolerance`` is in pixels of the model's input: a value
    counts that is at most so far from the object, centre to centre. The paper allows 15; here it is 0 unless given.
    """
    values_HW, inside_HW = _checked(map_HW, mask_HW)
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance={tolerance} is no distance in pixels; use 0 or more")
    if tolerance > 0:
        inside_HW = ndimage.distance_transform_edt(~inside_HW) <= tolerance
    return float(inside_HW[values_HW == values_HW.max()].mean())


def energy_inside(map_HW: Floats, mask_HW: NDArray[np.bool_]) -> float:
    """Share of the map's positive values that lies on the object; 0 where none is positive.

    The energy-based pointing game of Wang et al. 2020 (arXiv:1910.01279), whose maps are never negative. Here negative
    values are evidence against the class and count as 0; nothing is shifted or scaled.
    """
    values_HW, inside_HW = _checked(map_HW, mask_HW)
    largest = values_HW.max()
    if largest <= 0:
        return 0.0
    positive_HW = values_HW.clip(0) / largest  # sums of huge values would overflow
    return float(positive_HW[inside_HW].sum() / positive_HW.sum())


def best_iou(map_HW: Floats, mask_HW: NDArray[np.bool_]) -> float:
    """Largest intersection over union of the object and ``map >= t``, over all thresholds t.

    The threshold is the best one of each image, as in none of the benchmarks: Choe et al. 2020 (arXiv:2001.07437) take
    one for all images, and for boxes the box around the largest connected part. So it is an upper bound.
    """
    values_HW, inside_HW = _checked(map_HW, mask_HW)
    values, inside = values_HW.reshape(-1), inside_HW.reshape(-1)
    order = np.argsort(-values, kind="stable")
    above = np.arange(1, values.size + 1)
    intersection = np.cumsum(inside[order])
    # Equal values pass a threshold together, hence only the last of each counts.
    last = np.append(values[order[:-1]] != values[order[1:]], True)
    union = above + inside.sum() - intersection
    return float((intersection[last] / union[last]).max())


def _checked(map_HW: Floats, mask_HW: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if map_HW.ndim != 2 or map_HW.shape != mask_HW.shape or mask_HW.dtype != np.bool_:
        raise ValueError(
            f"map of shape {map_HW.shape}, mask {mask_HW.dtype} of {mask_HW.shape}; need (H, W) and bool, both alike"
        )
    values_HW = np.asarray(map_HW, np.float64)
    if not np.isfinite(values_HW).all():
        raise ValueError(f"map holds {int((~np.isfinite(values_HW)).sum())} values that are not finite")
    if not mask_HW.any():
        raise ValueError("mask marks no pixel; a map cannot be compared with nothing")
    return values_HW, mask_HW
