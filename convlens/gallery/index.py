"""Indexes for galleries too large for exact search: which kind, how they are built and tuned; and hubness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from convlens.errors import GalleryError
from convlens.gallery.vectors import nearest_others, sample_rows
from convlens.types import Floats, Ints

IndexKind = Literal["exact", "hnsw", "ivfpq"]
IndexChoice = Literal["auto", "exact", "hnsw", "ivfpq"]

# Exact search of 50,000 vectors of 1,280 takes about as long as a forward pass of a small network. HNSW answers
# fastest but is built slowly and lies in memory: 1,500 bytes a vector of 1,280 numbers. IVF-PQ: 72 bytes.
_EXACT_BELOW, _HNSW_BELOW = 50_000, 300_000
_FEWEST_VECTORS: Mapping[str, int] = MappingProxyType({"exact": 1, "hnsw": 1000, "ivfpq": 10_000})
_RECALL_K, _RECALL_QUERIES = 10, 200
_RECALL_GOAL = 0.96  # a little more than the promised 95 %: other queries find a little less
_FEWEST_CANDIDATES, _MOST_CANDIDATES = 200, 3200
_TRAINED_ON = 40  # vectors for each centroid of IVF-PQ; below 39 faiss warns that they are too few
_CHUNK, _SEED = 65_536, 1234
_HUBNESS_K, _HUBNESS_ROWS = 5, 5000


@dataclass(frozen=True)
class IndexRecord:
    """How neighbours are found. ``breadth`` is HNSW's efSearch or IVF-PQ's nprobe; the ``candidates`` that the index
    proposes are ranked again by exact distance.

    ``recall`` is the share of the true ``k`` nearest others that it found, for ``queries`` images of the gallery.
    """

    kind: IndexKind
    breadth: int = 0
    candidates: int = _FEWEST_CANDIDATES
    recall: float = 1.0
    k: int = 0
    queries: int = 0


EXACT = IndexRecord("exact")


def kind_for(choice: str, count: int) -> IndexKind:
    """The kind of index for ``count`` vectors. Raises GalleryError for an unknown one, and for too few vectors."""
    if choice not in get_args(IndexChoice):
        raise GalleryError(f"no index {choice!r}; there are: {', '.join(get_args(IndexChoice))}")
    if choice == "auto":
        return "exact" if count < _EXACT_BELOW else "hnsw" if count < _HNSW_BELOW else "ivfpq"
    kind: IndexKind = choice  # type: ignore[assignment]  # checked above
    fewest = _FEWEST_VECTORS[kind]
    if count < fewest:
        raise GalleryError(f"an index of kind {kind} needs {fewest} images or more, not {count}; use exact")
    return kind


def build_index(features_ND: Floats, kind: IndexKind, path: Path) -> IndexRecord:
    """Build an index, tune how far it searches until it finds 95 of 100 true neighbours, and write it.

    Features are read in chunks and may lie on disk. The same features make the same IVF-PQ index on one machine; HNSW
    is filled by several threads, in no fixed order. An index that does not reach 95 % is written all the same, with
    the recall that it has.
    """
    import faiss

    index = _hnsw(features_ND) if kind == "hnsw" else _ivfpq(features_ND)
    record = _tune(index, features_ND, kind)
    faiss.write_index(index, str(path))
    return record


def _hnsw(features_ND: Floats) -> Any:
    import faiss

    # Eight bits a number suffice, because candidates are ranked again by the features themselves.
    index: Any = faiss.index_factory(features_ND.shape[1], "HNSW32_SQ8")
    index.hnsw.efConstruction = 100  # faiss's own 40 makes a worse graph in less time
    index.train(_sample(features_ND, 50_000))
    _fill(index, features_ND)
    return index


def _ivfpq(features_ND: Floats) -> Any:
    import faiss

    count, dimensions = features_ND.shape
    # faiss's guideline for IVF is 4·√N to 16·√N lists.
    lists = int(2 ** round(math.log2(4 * math.sqrt(count))))
    coarse = faiss.IndexFlatL2(dimensions)
    index = faiss.IndexIVFPQ(coarse, dimensions, lists, _code_bytes(dimensions), 8)
    # Fixed, so that the same features make the same index.
    index.cp.seed, index.pq.cp.seed = _SEED, _SEED
    index.cp.niter = 10
    index.train(_sample(features_ND, _TRAINED_ON * lists))
    _fill(index, features_ND)
    return index


def _code_bytes(dimensions: int) -> int:
    """Bytes per vector: the largest divisor up to 64, since product quantisation cuts vectors into equal parts."""
    return max(part for part in range(1, min(64, dimensions) + 1) if dimensions % part == 0)


def _sample(features_ND: Floats, most: int) -> Floats:
    return np.ascontiguousarray(features_ND[sample_rows(len(features_ND), most)], np.float32)


def _fill(index: Any, features_ND: Floats) -> None:
    for first in range(0, len(features_ND), _CHUNK):
        # faiss takes contiguous float32 only; a chunk of a mapped file becomes that here.
        index.add(np.ascontiguousarray(features_ND[first : first + _CHUNK], np.float32))


def _tune(index: Any, features_ND: Floats, kind: IndexKind) -> IndexRecord:
    """Doubles the breadth or the candidates, whichever finds more, until the index finds enough."""
    # Images of the gallery itself stand for the queries to come.
    rows_M = sample_rows(len(features_ND), _RECALL_QUERIES)
    k = min(_RECALL_K, len(features_ND) - 1)
    true_MK = nearest_others(features_ND, rows_M, k=k)
    widest = int(index.nlist) if kind == "ivfpq" else 1024
    limits = np.array([widest, min(_MOST_CANDIDATES, len(features_ND))])

    def recall_at(at: Ints) -> float:
        set_breadth(index, kind, int(at[0]))
        return _recall(index, features_ND, rows_M, true_MK, int(at[1]))

    at = np.minimum([8 if kind == "ivfpq" else 64, _FEWEST_CANDIDATES], limits)
    recall = recall_at(at)
    while recall < _RECALL_GOAL and (at < limits).any():
        steps = [np.minimum(at * factors, limits) for factors in ((2, 1), (1, 2))]
        tried = [(recall_at(step), n, step) for n, step in enumerate(steps) if (step != at).any()]
        recall, _, at = max(tried, key=lambda result: result[:2])
    set_breadth(index, kind, int(at[0]))
    return IndexRecord(kind, int(at[0]), int(at[1]), recall, k, len(rows_M))


def _recall(index: Any, features_ND: Floats, rows_M: Ints, true_MK: Ints, candidates: int) -> float:
    query_MD = np.ascontiguousarray(features_ND[rows_M], np.float32)
    k = true_MK.shape[1]
    _, proposed_MR = index.search(query_MD, candidates)
    hits = 0
    for row, query_D, proposed_R, true_K in zip(rows_M, query_MD, proposed_MR, true_MK, strict=True):
        # faiss pads with -1; an image is no neighbour of itself.
        others = proposed_R[(proposed_R >= 0) & (proposed_R != row)]
        distance = ((np.asarray(features_ND[others], np.float64) - query_D) ** 2).sum(axis=1)
        hits += len(np.intersect1d(others[np.argsort(distance, kind="stable")[:k]], true_K))
    return hits / true_MK.size


def set_breadth(index: Any, kind: IndexKind, breadth: int) -> None:
    """Set how far the index searches: efSearch of HNSW, nprobe of IVF-PQ."""
    if kind == "hnsw":
        index.hnsw.efSearch = breadth
    else:
        index.nprobe = breadth


@dataclass(frozen=True)
class Hubness:
    """How unevenly ``measured`` images are among each other's ``k`` nearest (Radovanović et al. 2010, JMLR 11).

    ``skewness`` is that of how often each is among the k nearest of another: about 0 without hubs, above 1 with them.
    ``largest`` is the count of the worst hub, ``row`` its place in the gallery.
    """

    k: int
    measured: int
    skewness: float
    largest: int
    row: int


def hubness(features_ND: Floats) -> Hubness | None:
    """Measured exactly on at most 5,000 of the vectors; None for fewer than 3."""
    rows_M = sample_rows(len(features_ND), _HUBNESS_ROWS)
    if len(rows_M) < 3:
        return None
    sample_MD = np.asarray(features_ND[rows_M])
    k = min(_HUBNESS_K, len(rows_M) - 1)
    nearest_MK = nearest_others(sample_MD, np.arange(len(rows_M)), k=k)
    count_M = np.bincount(nearest_MK.ravel(), minlength=len(rows_M)).astype(np.float64)
    spread = float(count_M.std())
    skewness = float(((count_M - count_M.mean()) ** 3).mean() / spread**3) if spread else 0.0
    worst = int(count_M.argmax())
    return Hubness(k, len(rows_M), skewness, int(count_M[worst]), int(rows_M[worst]))
