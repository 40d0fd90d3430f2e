"""Which vectors may be compared, and in which space; nearest rows among rows, exactly."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convlens.errors import GalleryError
from convlens.types import Floats, Ints

FeatureSpace = Literal["unit", "raw"]

# Far above any healthy network's features, far below where a squared float32 overflows.
_LARGEST_NORM = 1e15
_CHUNK = 8192  # vectors in memory at a time
_BROKEN = "NaN, infinite or longer than 1e15; the model's weights may be damaged"
_ZERO = "all zero, which has no direction to compare; use another image or a gallery in the raw space"


def to_feature_space(vectors_ND: Floats, space: FeatureSpace) -> NDArray[np.float32]:
    """Vectors (N, D) as they are compared: float32, of length 1 each in the space ``unit``, unchanged in ``raw``.

    Raises GalleryError for NaN, infinite or absurdly large values, and in ``unit`` for a vector of zeros.
    """
    for row, flaw in find_flaws(vectors_ND, space).items():
        raise GalleryError(f"the embedding of row {row} is {flaw}")
    # A gallery's vectors and the queries both pass through here, so that equal embeddings stay exactly equal.
    wide_ND = np.asarray(vectors_ND, dtype=np.float64)
    if space == "unit":
        wide_ND = wide_ND / np.linalg.norm(wide_ND, axis=1, keepdims=True)
    return wide_ND.astype(np.float32)


def find_flaws(vectors_ND: Floats, space: FeatureSpace) -> dict[int, str]:
    """Row -> why it cannot be compared, for those rows that cannot."""
    # In float64, where the square of no float32 overflows.
    norm_N = np.linalg.norm(np.asarray(vectors_ND, dtype=np.float64), axis=1)
    flaws = {int(n): _BROKEN for n in np.flatnonzero(~(norm_N <= _LARGEST_NORM))}  # not >, which NaN would pass
    if space == "unit":
        flaws |= {int(n): _ZERO for n in np.flatnonzero(norm_N == 0)}
    return flaws


def require_matrix(vectors_ND: Floats) -> None:
    """Raises GalleryError unless these are floats (N, D) with at least one column."""
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] == 0 or vectors_ND.dtype.kind != "f":
        raise GalleryError(f"embeddings must be floats (N, D), D ≥ 1; got {vectors_ND.dtype} {vectors_ND.shape}")


def require_space(space: str) -> None:
    """Raises GalleryError for an unknown feature space."""
    if space not in get_args(FeatureSpace):
        raise GalleryError(f"no feature space {space!r}; there are: {', '.join(get_args(FeatureSpace))}")


def nearest_others(vectors_ND: Floats, rows_M: Ints, *, k: int) -> Ints:
    """For each of the rows the ``k`` nearest other rows by L2 distance (M, K), nearest first, ties in their order.

    In float64; 1 ≤ k < N. The vectors are read once, in chunks, and may lie on disk.
    """
    query_MD = np.asarray(vectors_ND[rows_M], np.float64)
    query_M1 = (query_MD**2).sum(axis=1)[:, None]
    best_MK: NDArray[Any] = np.empty((len(rows_M), 0))
    row_MK: NDArray[Any] = np.empty((len(rows_M), 0), np.int64)
    for first in range(0, len(vectors_ND), _CHUNK):
        chunk_BD = np.asarray(vectors_ND[first : first + _CHUNK], np.float64)
        squared_MB = query_M1 - 2 * query_MD @ chunk_BD.T + (chunk_BD**2).sum(axis=1)
        own = np.flatnonzero((rows_M >= first) & (rows_M < first + len(chunk_BD)))
        squared_MB[own, rows_M[own] - first] = np.inf
        row_B = np.arange(first, first + len(chunk_BD))
        best_MK, row_MK = _merge_nearest(best_MK, row_MK, squared_MB, np.broadcast_to(row_B, squared_MB.shape), k)
    return row_MK


def _merge_nearest(
    best_MK: NDArray[Any], row_MK: NDArray[Any], squared_MB: NDArray[Any], row_MB: NDArray[Any], k: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    if squared_MB.shape[1] > k:
        # The k smallest without sorting the chunk; their own order must stay that of the rows, for the ties.
        kept_MK = np.sort(np.argpartition(squared_MB, k - 1, axis=1)[:, :k], axis=1)
        squared_MB, row_MB = (np.take_along_axis(each, kept_MK, axis=1) for each in (squared_MB, row_MB))
    squared_MA = np.concatenate([best_MK, squared_MB], axis=1)
    row_MA = np.concatenate([row_MK, row_MB], axis=1)
    order_MK = squared_MA.argsort(axis=1, kind="stable")[:, :k]  # earlier rows first among ties
    return np.take_along_axis(squared_MA, order_MK, axis=1), np.take_along_axis(row_MA, order_MK, axis=1)


def sample_rows(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the rows, drawn at random but always the same, in order; all where there are no more."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))
