"""Neighbours among many vectors: our indexes against numpy looking through all of them, in one run.

    python benchmarks/gallery.py --count 1000000

Synthetic embeddings of 1,280 numbers on disk: 2,000 groups whose centres are normal, each vector its centre plus noise
of half their spread, made non-negative as embeddings behind a ReLU are, and of length 1. Queries are further ones of
the same kind, one at a time, as a server gets them. numpy holds all vectors in memory, as float32, and takes
``|x|² - 2 q·x`` and ``argpartition``: the fastest plain way we know. Recall is the share of the 10 nearest by float64.
Sides take turns; a ratio is the median over queries.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from table import RESULTS, show, write

from convlens.gallery import Gallery, GalleryEntry
from convlens.gallery.index import IndexChoice
from convlens.gallery.vectors import to_feature_space
from convlens.gallery.writer import EmbeddingSource, Part, write_parts

DIMENSIONS, GROUPS, NOISE, CHUNK, K = 1280, 2000, 0.5, 20_000, 10


def centres() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(GROUPS, DIMENSIONS)).astype(np.float32)


def vectors(count: int, seed: int, centre_GD: np.ndarray) -> np.ndarray:
    chance = np.random.default_rng(seed)
    noise_ND = chance.standard_normal((count, DIMENSIONS), np.float32)
    raw_ND = centre_GD[chance.integers(0, GROUPS, count)] + NOISE * noise_ND
    return to_feature_space(raw_ND.clip(0), "unit")


def build(folder: Path, count: int, kind: IndexChoice) -> float:
    """A gallery of that many, streamed; the seconds it took."""
    centre_GD = centres()

    def parts() -> Any:
        for first in range(0, count, CHUNK):
            size = min(CHUNK, count - first)
            names = [GalleryEntry(f"{first + n}", "") for n in range(size)]
            yield Part(vectors(size, 1 + first // CHUNK, centre_GD), names)

    started = time.perf_counter()
    write_parts(
        folder, parts(), EmbeddingSource("0" * 64, "synthetic", "none"), count=count, dimensions=DIMENSIONS, index=kind
    )
    return time.perf_counter() - started


def brute_force(vectors_ND: np.ndarray, square_N: np.ndarray, query_D: np.ndarray) -> np.ndarray:
    squared_N = square_N - 2 * (vectors_ND @ query_D)
    near = np.argpartition(squared_N, K)[:K]
    return near[np.argsort(squared_N[near])]


def nearest_in_float64(vectors_ND: np.ndarray, query_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and distances of the K nearest, chunk by chunk."""
    best_MK, row_MK = np.empty((len(query_MD), 0)), np.empty((len(query_MD), 0), np.int64)
    wide_MD = query_MD.astype(np.float64)
    for first in range(0, len(vectors_ND), CHUNK):
        chunk_BD = vectors_ND[first : first + CHUNK].astype(np.float64)
        squared_MB = (wide_MD**2).sum(1)[:, None] - 2 * wide_MD @ chunk_BD.T + (chunk_BD**2).sum(1)
        rows_MB = np.broadcast_to(np.arange(first, first + len(chunk_BD)), squared_MB.shape)
        best_MK, row_MK = np.concatenate([best_MK, squared_MB], 1), np.concatenate([row_MK, rows_MB], 1)
        order_MK = best_MK.argsort(1, kind="stable")[:, :K]
        best_MK, row_MK = np.take_along_axis(best_MK, order_MK, 1), np.take_along_axis(row_MK, order_MK, 1)
    difference = vectors_ND[row_MK].astype(np.float64) - wide_MD[:, None]
    return row_MK, np.sqrt((difference**2).sum(2))


def timed(sides: dict[str, Callable[[np.ndarray], Any]], query_MD: np.ndarray) -> tuple[dict[str, list[float]], Any]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for side in sides.values():
        side(query_MD[0])  # whatever is opened or read at first
    for query_D in query_MD:
        for name, side in sides.items():
            started = time.perf_counter()
            answer = side(query_D)
            seconds[name].append(time.perf_counter() - started)
            found[name].append(answer)
    return seconds, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="faiss for GPUs is no requirement of ours")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", default=["ivfpq"], choices=["exact", "hnsw", "ivfpq"])
    parser.add_argument("--folder", type=Path, help="where the galleries go; 5.2 GB each for a million")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    query_MD = vectors(given.queries, 10**6, centres())
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        built = {kind: build(Path(folder) / kind, given.count, kind) for kind in given.kinds}
        galleries = {kind: Gallery.open(Path(folder) / kind, verify=False) for kind in given.kinds}
        mapped_ND = galleries[given.kinds[0]].features_ND
        true_MK, true_distance = nearest_in_float64(mapped_ND, query_MD)
        held_ND = np.array(mapped_ND)
        square_N = np.einsum("nd,nd->n", held_ND, held_ND)
        sides: dict[str, Callable[[np.ndarray], Any]] = {"numpy": lambda q: brute_force(held_ND, square_N, q)}
        for kind, gallery in galleries.items():
            sides[kind] = lambda q, gallery=gallery: gallery.query(q[None], k=K)[0]
        seconds, found = timed(sides, query_MD)
        rows = [row(name, seconds, found, true_MK, true_distance, built, galleries) for name in sides]
    show(rows)
    write(
        given.out or RESULTS / "gallery-cpu.json",
        device="cpu",
        rows=rows,
        faiss=faiss.__version__,
        vectors=f"{given.count} × {DIMENSIONS}, {GROUPS} groups",
        queries=given.queries,
    )


def row(
    name: str,
    seconds: dict[str, list[float]],
    found: dict[str, list[Any]],
    true_MK: np.ndarray,
    true_distance: np.ndarray,
    built: dict[str, float],
    galleries: dict[str, Gallery],
) -> dict[str, Any]:
    ours = name in galleries
    names = [[int(near.id) for near in some] if ours else some.tolist() for some in found[name]]
    recall = np.mean([len(set(some) & set(true)) / K for some, true in zip(names, true_MK.tolist(), strict=True)])
    off = 0.0
    if ours:
        for some, true, exact in zip(found[name], true_MK.tolist(), true_distance, strict=True):
            at = dict(zip(true, exact.tolist(), strict=True))
            off = max([off, *(abs(near.distance - at[int(near.id)]) for near in some if int(near.id) in at)])
    ratios = [a / b for a, b in zip(seconds["numpy"], seconds[name], strict=True)]
    return {
        "side": name,
        "milliseconds a query": 1000 * statistics.median(seconds[name]),
        "numpy / this": statistics.median(ratios),
        "recall@10": float(recall),
        "distances off by": off,
        "recall said at build": galleries[name].index.recall if ours else 1.0,
        "breadth": galleries[name].index.breadth if ours else 0,
        "candidates": galleries[name].index.candidates if ours else 0,
        "built in seconds": built.get(name, 0.0),
        "index MB": galleries[name]._manifest.files["index.faiss"].bytes / 1e6 if ours and name != "exact" else 0.0,
    }


if __name__ == "__main__":
    main()
