"""Exact nearest vectors. The one home of faiss."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convlens.types import Floats, Ints

_MORE = 32  # candidates beyond those asked for; on real embeddings one round then nearly always suffices
_GROWTH = 8


@dataclass(frozen=True)
class Nearest:
    """Of one query: rows of the gallery, nearest first, and their Euclidean distances in float64."""

    rows_M: Ints
    distance_M: Floats


class ExactSearch:
    """The k nearest of ``vectors_ND`` (float32) by true L2 distance; ties go to the earlier row.

    faiss proposes: its squared distances are float32, and for large batches made by matrix products, where cancellation
    leaves near duplicates no right digit (measured: 2 of the 20 nearest found). Float64 decides: candidates are
    measured again, and their number grows until no other vector can be nearer, however faiss rounded. The faiss index
    (a second copy in memory) is made at the first search, once for all threads.
    """

    def __init__(self, vectors_ND: NDArray[np.float32]) -> None:
        self._vectors_ND = vectors_ND
        self._lock = threading.Lock()
        self._index: Any = None
        self._largest_norm = 0.0

    def nearest(self, query_ND: NDArray[np.float32], k: int) -> list[Nearest]:
        """For each query its k nearest; 1 ≤ k ≤ the number of vectors."""
        index = self._built()
        candidates = min(k + _MORE, len(self._vectors_ND))
        squared_NM, rows_NM = index.search(query_ND, candidates)
        return [
            self._settled(query_D, k, rows_M, squared_M)
            for query_D, rows_M, squared_M in zip(query_ND, rows_NM, squared_NM, strict=True)
        ]

    def _settled(self, query_D: NDArray[np.float32], k: int, rows_M: Ints, squared_M: Floats) -> Nearest:
        total = len(self._vectors_ND)
        error = self._error_of_faiss(query_D)
        while True:
            found, kth_squared = self._measured(query_D, rows_M, k)
            # Whatever faiss left out is, by its own account, no nearer than the last candidate.
            if len(rows_M) == total or float(squared_M[-1]) - error > kth_squared:
                return found
            candidates = len(rows_M) * _GROWTH
            if candidates >= total:
                rows_M = np.arange(total)
            else:
                (squared_M,), (rows_M,) = self._built().search(query_D[None], candidates)

    def _measured(self, query_D: NDArray[np.float32], rows_M: Ints, k: int) -> tuple[Nearest, float]:
        """The k nearest of the candidates, and the squared distance of the last of them."""
        difference_MD = self._vectors_ND[rows_M].astype(np.float64) - query_D.astype(np.float64)
        squared_M = (difference_MD**2).sum(axis=1)
        order = np.lexsort((rows_M, squared_M))[:k]
        return Nearest(rows_M[order], np.sqrt(squared_M[order])), float(squared_M[order[-1]])

    def _error_of_faiss(self, query_D: NDArray[np.float32]) -> float:
        """Bound on the error of |x|² + |y|² - 2xy in float32, summed in any order (Higham 2002, 3.1), doubled."""
        roundings = 2 * (len(query_D) + 4)
        lengths = float(np.linalg.norm(query_D.astype(np.float64))) + self._largest_norm
        return roundings * float(np.finfo(np.float32).eps) / 2 * lengths**2

    def _built(self) -> Any:
        with self._lock:
            if self._index is None:
                import faiss  # here, so that a worker without neighbours never loads it

                index = faiss.IndexFlatL2(self._vectors_ND.shape[1])
                index.add(self._vectors_ND)
                self._largest_norm = float(np.linalg.norm(self._vectors_ND, axis=1).max())
                self._index = index
            return self._index
