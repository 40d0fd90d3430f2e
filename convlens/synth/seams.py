"""Seams of least error between pictures that overlap (Efros & Freeman 2001), by dynamic programming."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convlens.types import Floats


def least_seam(error_RQ: Floats) -> NDArray[np.intp]:
    """For each row the column of the path from top to bottom of least error, 8-connected."""
    rows, columns = error_RQ.shape
    total_RQ = np.array(error_RQ, np.float64)
    for row in range(1, rows):
        above_Q = np.pad(total_RQ[row - 1], 1, constant_values=np.inf)
        total_RQ[row] += np.minimum(np.minimum(above_Q[:-2], above_Q[1:-1]), above_Q[2:])
    seam_R = np.empty(rows, np.intp)
    seam_R[-1] = total_RQ[-1].argmin()
    for row in range(rows - 2, -1, -1):
        low = max(0, seam_R[row + 1] - 1)
        high = min(columns, seam_R[row + 1] + 2)
        seam_R[row] = low + total_RQ[row, low:high].argmin()
    return seam_R


def beyond_seam(error_RQ: Floats) -> NDArray[np.bool_]:
    """Where the new picture shows: right of the seam, and on it."""
    return np.arange(error_RQ.shape[1]) >= least_seam(error_RQ)[:, None]
