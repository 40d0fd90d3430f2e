"""Nearest rows among rows, exactly, of more vectors than memory holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.types import Floats, Ints

_CHUNK = 8192


def nearest_others(vectors_ND: Floats, rows_M: Ints, *, k: int) -> Ints:
    """For each of the rows the ``k`` nearest other rows by L2 distance (M, K), nearest first, equals in their order.

    In float64, vectors read in chunks, once; 1 ≤ k < N.
    """
    asked_MD = np.asarray(vectors_ND[rows_M], np.float64)
    asked_M1 = (asked_MD**2).sum(axis=1)[:, None]
    best_MK: NDArray[Any] = np.empty((len(rows_M), 0))
    row_MK: NDArray[Any] = np.empty((len(rows_M), 0), np.int64)
    for first in range(0, len(vectors_ND), _CHUNK):
        chunk_BD = np.asarray(vectors_ND[first : first + _CHUNK], np.float64)
        squared_MB = asked_M1 - 2 * asked_MD @ chunk_BD.T + (chunk_BD**2).sum(axis=1)
        own = np.flatnonzero((rows_M >= first) & (rows_M < first + len(chunk_BD)))
        squared_MB[own, rows_M[own] - first] = np.inf
        row_B = np.arange(first, first + len(chunk_BD))
        best_MK, row_MK = _merged(best_MK, row_MK, squared_MB, np.broadcast_to(row_B, squared_MB.shape), k)
    return row_MK


def _merged(
    best_MK: NDArray[Any], row_MK: NDArray[Any], squared_MB: NDArray[Any], row_MB: NDArray[Any], k: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    if squared_MB.shape[1] > k:
        kept_MK = np.sort(np.argpartition(squared_MB, k - 1, axis=1)[:, :k], axis=1)
        squared_MB, row_MB = (np.take_along_axis(each, kept_MK, axis=1) for each in (squared_MB, row_MB))
    squared_MA = np.concatenate([best_MK, squared_MB], axis=1)
    row_MA = np.concatenate([row_MK, row_MB], axis=1)
    order_MK = squared_MA.argsort(axis=1, kind="stable")[:, :k]  # earlier rows stand first among equals
    return np.take_along_axis(squared_MA, order_MK, axis=1), np.take_along_axis(row_MA, order_MK, axis=1)


def sampled(count: int, most: int) -> NDArray[np.int64]:
    """That many of the rows, spread by chance but always the same; all where there are no more."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))
