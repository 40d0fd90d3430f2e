"""Nearest vectors, exactly or as an index proposes them; distances are exact either way."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convlens.errors import GalleryError
from convlens.gallery.index import IndexRecord, set_breadth
from convlens.types import Floats, Ints

_EXTRA = 32  # candidates beyond the k nearest; on real embeddings one round then nearly always suffices
_GROWTH = 8
# Larger galleries are searched where they lie, chunk by chunk, instead of being copied into an index.
_LARGEST_COPY_BYTES, _CHUNK = 2**30, 65_536


@dataclass(frozen=True)
class Nearest:
    """A query's rows of the gallery, nearest first, and their Euclidean distances in float64."""

    rows_M: Ints
    distance_M: Floats


class Search(Protocol):
    """Finds nearest vectors; safe to use from several threads."""

    def nearest(self, query_ND: NDArray[np.float32], k: int) -> list[Nearest]:
        """Each query's k nearest; 1 ≤ k ≤ the number of vectors."""


class ExactSearch:
    """The k nearest of ``vectors_ND`` (float32) by true L2 distance; ties go to the earlier row.

    The first search builds a faiss index, once for all threads: a second copy in memory, up to a gigabyte; larger
    galleries stay on disk. With ``gpu`` the index lies on the GPU of that number.
    """

    # faiss proposes: its squared distances are float32, and for large batches made by matrix products, where
    # cancellation leaves near duplicates no right digit (measured: 2 of the 20 nearest found). Float64 decides:
    # candidates are measured again, and their number grows until no other vector can be nearer, however faiss rounded.

    def __init__(self, vectors_ND: NDArray[np.float32], *, gpu: int | None = None) -> None:
        self._vectors_ND = vectors_ND
        self._gpu = gpu
        self._lock = threading.Lock()
        self._index: Any = None
        self._largest_norm = 0.0

    def nearest(self, query_ND: NDArray[np.float32], k: int) -> list[Nearest]:
        """Each query's k nearest; 1 ≤ k ≤ the number of vectors."""
        squared_NM, rows_NM = self._faiss_index().search(query_ND, min(k + _EXTRA, len(self._vectors_ND)))
        return [
            self._verified(query_D, k, rows_M, squared_M)
            for query_D, rows_M, squared_M in zip(query_ND, rows_NM, squared_NM, strict=True)
        ]

    def _verified(self, query_D: NDArray[np.float32], k: int, rows_M: Ints, squared_M: Floats) -> Nearest:
        total = len(self._vectors_ND)
        error = self._rounding_bound(query_D)
        while True:
            nearest, kth_squared = _rank(self._vectors_ND, query_D, rows_M, k)
            # By faiss's own distances, no vector that it omitted is nearer than the last candidate.
            if len(rows_M) == total or float(squared_M[-1]) - error > kth_squared:
                return nearest
            candidates = len(rows_M) * _GROWTH
            if candidates >= total:
                rows_M = np.arange(total)
            else:
                (squared_M,), (rows_M,) = self._faiss_index().search(query_D[None], candidates)

    def _rounding_bound(self, query_D: NDArray[np.float32]) -> float:
        """Bound on the error of |x|² + |y|² - 2xy in float32, summed in any order (Higham 2002, 3.1), doubled."""
        roundings = 2 * (len(query_D) + 4)
        lengths = float(np.linalg.norm(query_D.astype(np.float64))) + self._largest_norm
        return roundings * float(np.finfo(np.float32).eps) / 2 * lengths**2

    def _faiss_index(self) -> Any:
        # Within the lock: two threads that come first at once would make two copies.
        with self._lock:
            if self._index is None:
                self._largest_norm = max(float(np.linalg.norm(chunk, axis=1).max()) for chunk in self._chunks())
                self._index = self._flat_index() if self._vectors_ND.nbytes <= _LARGEST_COPY_BYTES else _Scan(self)
            return self._index

    def _flat_index(self) -> Any:
        import faiss  # here, so that a server without a gallery never loads it

        index = faiss.IndexFlatL2(self._vectors_ND.shape[1])
        if self._gpu is not None:
            index = _on_gpu(index, self._gpu)
        index.add(self._vectors_ND)
        return index

    def _chunks(self) -> Any:
        return (self._vectors_ND[n : n + _CHUNK] for n in range(0, len(self._vectors_ND), _CHUNK))


class _Scan:
    """Searches as a flat index, but the vectors stay where they are, and are read once for all queries."""

    def __init__(self, search: ExactSearch) -> None:
        self._chunks = search._chunks

    def search(self, query_ND: NDArray[np.float32], k: int) -> tuple[Floats, Ints]:
        import faiss

        squared_NM: NDArray[Any] = np.empty((len(query_ND), 0), np.float32)
        rows_NM: NDArray[Any] = np.empty((len(query_ND), 0), np.int64)
        first = 0
        for chunk_BD in self._chunks():
            squared_NB, rows_NB = faiss.knn(query_ND, np.ascontiguousarray(chunk_BD), min(k, len(chunk_BD)))
            squared_NM = np.concatenate([squared_NM, squared_NB], axis=1)
            rows_NM = np.concatenate([rows_NM, rows_NB + first], axis=1)
            order_NM = squared_NM.argsort(axis=1, kind="stable")[:, :k]
            squared_NM, rows_NM = (np.take_along_axis(each, order_NM, axis=1) for each in (squared_NM, rows_NM))
            first += len(chunk_BD)
        return squared_NM, rows_NM


class IndexedSearch:
    """The k nearest of those that an HNSW or IVF-PQ index proposes, ranked by the vectors themselves.

    Distances and order are exact; a true neighbour may be missing, about as often as ``record.recall`` says. The index
    is opened at the first search; IVF-PQ's lists stay on disk, memory-mapped.
    """

    def __init__(self, vectors_ND: NDArray[np.float32], path: Path, record: IndexRecord) -> None:
        self._vectors_ND, self._record, self._path = vectors_ND, record, path
        self._exact = ExactSearch(vectors_ND)
        self._lock = threading.Lock()
        self._index: Any = None

    def nearest(self, query_ND: NDArray[np.float32], k: int) -> list[Nearest]:
        """Each query's k nearest; 1 ≤ k ≤ the number of vectors."""
        _, rows_NM = self._opened().search(query_ND, max(self._record.candidates, 10 * k))
        return [
            self._ranked(query_D, rows_M[rows_M >= 0], k) for query_D, rows_M in zip(query_ND, rows_NM, strict=True)
        ]

    def _ranked(self, query_D: NDArray[np.float32], rows_M: Ints, k: int) -> Nearest:
        if len(rows_M) < k:  # the lists that were searched hold too few
            return self._exact.nearest(query_D[None], k)[0]
        return _rank(self._vectors_ND, query_D, rows_M, k)[0]

    def _opened(self) -> Any:
        with self._lock:
            if self._index is None:
                import faiss  # only now: opening a gallery must not load it

                mapped = faiss.IO_FLAG_MMAP if self._record.kind == "ivfpq" else 0
                # faiss maps inverted lists, of which HNSW has none.
                index = faiss.read_index(str(self._path), mapped | faiss.IO_FLAG_READ_ONLY)
                if (index.ntotal, index.d) != self._vectors_ND.shape:
                    raise GalleryError(
                        f"{self._path} holds {index.ntotal}×{index.d} vectors instead of "
                        f"{'×'.join(map(str, self._vectors_ND.shape))}; build the gallery again"
                    )
                set_breadth(index, self._record.kind, self._record.breadth)
                self._index = index
            return self._index


def _rank(vectors_ND: NDArray[np.float32], query_D: NDArray[np.float32], rows_M: Ints, k: int) -> tuple[Nearest, float]:
    """The k nearest of the candidates in float64, ties in the vectors' order, and the last one's squared distance."""
    difference_MD = vectors_ND[rows_M].astype(np.float64) - query_D.astype(np.float64)
    squared_M = (difference_MD**2).sum(axis=1)
    order = np.lexsort((rows_M, squared_M))[:k]  # by distance, then by row
    return Nearest(rows_M[order], np.sqrt(squared_M[order])), float(squared_M[order[-1]])


def _on_gpu(index: Any, gpu: int) -> Any:
    import faiss

    count = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if not 0 <= gpu < count:
        raise GalleryError(
            f"GPU {gpu} was asked for, but this faiss finds {count}; install a faiss for GPUs, or leave gpu out"
        )
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gpu, index)
