"""Indexes for galleries too large to be looked through: which kind, how made, and how often they are right.

Hubs: pictures that are near to too many others to mean anything.
"""

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

# Looking through 50,000 vectors of 1,280 takes about as long as a forward pass of a small network. HNSW answers fastest
# but is built slowly and lies in memory: 1,500 bytes a vector of 1,280 numbers. IVF-PQ: 72 bytes.
EXACT_BELOW, HNSW_BELOW = 50_000, 300_000
FEWEST: Mapping[str, int] = MappingProxyType({"exact": 1, "hnsw": 1000, "ivfpq": 10_000})
RECALL_K, QUERIES, GOOD = (
    10,
    200,
    0.96,
)  # a little more than the 95 % that is promised: other queries find a little less
_FEWEST_CANDIDATES, _MOST_CANDIDATES = 200, 3200
_TRAINED_ON, _CHUNK, _SEED = 40, 65_536, 1234  # vectors a centroid


@dataclass(frozen=True)
class IndexRecord:
    """``breadth`` is how far a search looks: efSearch of HNSW, lists of IVF-PQ (nprobe). Of what it comes upon, the
    best ``candidates`` are measured again by the features themselves.

    ``recall`` is the share of the true ``k`` nearest others that it found, for ``queries`` pictures of the gallery.
    """

    kind: IndexKind
    breadth: int = 0
    candidates: int = _FEWEST_CANDIDATES
    recall: float = 1.0
    k: int = 0
    queries: int = 0


EXACT = IndexRecord("exact")


def kind_for(wanted: str, count: int) -> IndexKind:
    """The kind to build; GalleryError for one that there is not, or that so few vectors do not fill."""
    if wanted not in get_args(IndexChoice):
        raise GalleryError(f"no index {wanted!r}; there are: {', '.join(get_args(IndexChoice))}")
    if wanted == "auto":
        return "exact" if count < EXACT_BELOW else "hnsw" if count < HNSW_BELOW else "ivfpq"
    kind: IndexKind = wanted  # type: ignore[assignment]  # one of them, as was just seen
    if count < FEWEST[kind]:
        raise GalleryError(f"an index of kind {kind} needs {FEWEST[kind]} pictures or more, not {count}; use exact")
    return kind


def build_index(features_ND: Floats, kind: IndexKind, path: Path) -> IndexRecord:
    """Build and write an index, and find out how far it must look to find 95 of 100 true neighbours.

    Features are read in chunks and may lie on disk. The same features make the same IVF-PQ index on one machine; HNSW
    is filled by several threads, in no fixed order. An index that does not reach 95 % is written all the same, with
    the recall that it has.
    """
    import faiss

    index = _hnsw(features_ND) if kind == "hnsw" else _ivfpq(features_ND)
    record = _tuned(index, features_ND, kind)
    faiss.write_index(index, str(path))
    return record


def _hnsw(features_ND: Floats) -> Any:
    import faiss

    # Eight bits a number: what is found is measured again by the features themselves.
    index: Any = faiss.index_factory(features_ND.shape[1], "HNSW32_SQ8")
    index.hnsw.efConstruction = 100
    index.train(_some(features_ND, 50_000))
    _fill(index, features_ND)
    return index


def _ivfpq(features_ND: Floats) -> Any:
    import faiss

    count, dimensions = features_ND.shape
    lists = int(2 ** round(math.log2(4 * math.sqrt(count))))
    coarse = faiss.IndexFlatL2(dimensions)
    index = faiss.IndexIVFPQ(coarse, dimensions, lists, _parts(dimensions), 8)
    index.cp.seed, index.pq.cp.seed = _SEED, _SEED
    index.cp.niter = 10
    index.train(_some(features_ND, _TRAINED_ON * lists))
    _fill(index, features_ND)
    return index


def _parts(dimensions: int) -> int:
    """Bytes a vector: the largest divisor up to 64."""
    return max(part for part in range(1, min(64, dimensions) + 1) if dimensions % part == 0)


def _some(features_ND: Floats, most: int) -> Floats:
    return np.ascontiguousarray(features_ND[sample_rows(len(features_ND), most)], np.float32)


def _fill(index: Any, features_ND: Floats) -> None:
    for first in range(0, len(features_ND), _CHUNK):
        index.add(np.ascontiguousarray(features_ND[first : first + _CHUNK], np.float32))


def _tuned(index: Any, features_ND: Floats, kind: IndexKind) -> IndexRecord:
    """Twice as far, or twice as many candidates, whichever finds more, until it finds enough."""
    rows_M = sample_rows(len(features_ND), QUERIES)
    k = min(RECALL_K, len(features_ND) - 1)
    true_MK = nearest_others(features_ND, rows_M, k=k)
    widest = int(index.nlist) if kind == "ivfpq" else 1024
    limits = np.array([widest, min(_MOST_CANDIDATES, len(features_ND))])

    def recall_at(at: Ints) -> float:
        set_breadth(index, kind, int(at[0]))
        return _recall(index, features_ND, rows_M, true_MK, int(at[1]))

    now = np.minimum([8 if kind == "ivfpq" else 64, _FEWEST_CANDIDATES], limits)
    recall = recall_at(now)
    while recall < GOOD and (now < limits).any():
        further = [np.minimum(now * step, limits) for step in ((2, 1), (1, 2))]
        tried = [(recall_at(at), n, at) for n, at in enumerate(further) if (at != now).any()]
        recall, _, now = max(tried, key=lambda found: found[:2])
    set_breadth(index, kind, int(now[0]))
    return IndexRecord(kind, int(now[0]), int(now[1]), recall, k, len(rows_M))


def _recall(index: Any, features_ND: Floats, rows_M: Ints, true_MK: Ints, wanted: int) -> float:
    query_MD = np.ascontiguousarray(features_ND[rows_M], np.float32)
    k = true_MK.shape[1]
    _, found_MR = index.search(query_MD, wanted)
    hits = 0
    for row, query_D, found_R, true_K in zip(rows_M, query_MD, found_MR, true_MK, strict=True):
        others = found_R[(found_R >= 0) & (found_R != row)]
        distance = ((np.asarray(features_ND[others], np.float64) - query_D) ** 2).sum(axis=1)
        hits += len(np.intersect1d(others[np.argsort(distance, kind="stable")[:k]], true_K))
    return hits / true_MK.size


def set_breadth(index: Any, kind: IndexKind, breadth: int) -> None:
    """How far searches look from now on."""
    if kind == "hnsw":
        index.hnsw.efSearch = breadth
    else:
        index.nprobe = breadth


HUBNESS_K, MOST = 5, 5000


@dataclass(frozen=True)
class Hubness:
    """Of ``measured`` pictures, how unevenly they are each other's ``k`` nearest (Radovanović et al. 2010, JMLR 11).

    ``skewness`` of how often each is among the k nearest of another: about 0 where there are no hubs, above 1 where
    there are. ``largest`` is the count of the worst hub, ``row`` its place in the gallery.
    """

    k: int
    measured: int
    skewness: float
    largest: int
    row: int


def hubness(features_ND: Floats) -> Hubness | None:
    """Measured exactly on at most 5,000 of the features; None for fewer than 3."""
    rows_M = sample_rows(len(features_ND), MOST)
    if len(rows_M) < 3:
        return None
    some_MD = np.asarray(features_ND[rows_M])
    k = min(HUBNESS_K, len(rows_M) - 1)
    near_MK = nearest_others(some_MD, np.arange(len(rows_M)), k=k)
    count_M = np.bincount(near_MK.ravel(), minlength=len(rows_M)).astype(np.float64)
    spread = float(count_M.std())
    skewness = float(((count_M - count_M.mean()) ** 3).mean() / spread**3) if spread else 0.0
    worst = int(count_M.argmax())
    return Hubness(k, len(rows_M), skewness, int(count_M[worst]), int(rows_M[worst]))
