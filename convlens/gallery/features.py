"""Which vectors may be compared, and in which space."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convlens.errors import GalleryError
from convlens.types import Floats

FeatureSpace = Literal["unit", "raw"]

# Far above any healthy network's features, far below where a squared float32 overflows.
_LARGEST_NORM = 1e15
_BROKEN = "NaN, infinite or longer than 1e15; the model's weights may be damaged"
_ZERO = "all zero, which has no direction to compare; use another picture or a gallery in the raw space"


def as_features(vectors_ND: Floats, space: FeatureSpace) -> NDArray[np.float32]:
    """Vectors as they are compared: float32, of length 1 each in the space ``unit``, unchanged in ``raw``.

    A gallery's vectors and the queries both pass through here, so that equal embeddings stay exactly equal. Raises
    GalleryError for NaN, infinite or absurdly large values, and in ``unit`` for a vector of zeros.
    """
    for row, flaw in flaws(vectors_ND, space).items():
        raise GalleryError(f"the embedding of row {row} is {flaw}")
    wide_ND = np.asarray(vectors_ND, dtype=np.float64)
    if space == "unit":
        wide_ND = wide_ND / np.linalg.norm(wide_ND, axis=1, keepdims=True)
    return wide_ND.astype(np.float32)


def flaws(vectors_ND: Floats, space: FeatureSpace) -> dict[int, str]:
    """Row -> what is wrong with it, for the rows that cannot be compared."""
    norm_N = np.linalg.norm(np.asarray(vectors_ND, dtype=np.float64), axis=1)
    found = {int(n): _BROKEN for n in np.flatnonzero(~(norm_N <= _LARGEST_NORM))}  # not >, which NaN would pass
    if space == "unit":
        found |= {int(n): _ZERO for n in np.flatnonzero(norm_N == 0)}
    return found


def require_matrix(vectors_ND: Floats) -> None:
    """Raises GalleryError unless these are numbers in rows, at least one column of them."""
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] == 0 or vectors_ND.dtype.kind != "f":
        raise GalleryError(f"embeddings must be floats (N, D), D ≥ 1; got {vectors_ND.dtype} {vectors_ND.shape}")


def require_space(space: str) -> None:
    """Raises GalleryError for an unknown feature space."""
    if space not in get_args(FeatureSpace):
        raise GalleryError(f"no feature space {space!r}; there are: {', '.join(get_args(FeatureSpace))}")
