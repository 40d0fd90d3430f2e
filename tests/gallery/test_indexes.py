"""Indexes for big galleries, against brute force; hubs, against a count by hand; scans of what lies on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from galleries import brute_force, found, make

from convlens.errors import GalleryError
from convlens.gallery import Gallery, index, search
from convlens.gallery.index import hubness, kind_for
from convlens.gallery.search import ExactSearch
from convlens.gallery.vectors import nearest_others

RANDOM = np.random.default_rng(0)


def clusters(count: int, dimensions: int = 8, *, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(60, dimensions))
    return (centres[chance.integers(0, 60, count)] + 0.4 * chance.normal(size=(count, dimensions))).astype(np.float32)


@pytest.fixture(scope="module")
def hnsw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("hnsw"), "hnsw")


@pytest.fixture(scope="module")
def ivfpq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("ivfpq"), "ivfpq")


def made(folder: Path, kind: str) -> Path:
    """A gallery of ``clusters(12_000)``."""
    make(folder, clusters(12_000), index=kind)
    return folder


@pytest.fixture(params=["hnsw", "ivfpq"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def indexed(folder: Path) -> tuple[Gallery, np.ndarray]:
    return Gallery.open(folder), clusters(12_000)


def test_an_index_finds_what_it_says_and_its_distances_are_exact(indexed: tuple[Gallery, np.ndarray]) -> None:
    gallery, vectors_ND = indexed
    query_ND = clusters(100, seed=0) + 0.01
    rows, distance = found(gallery, query_ND, 10)
    true_rows, true_distance = brute_force(vectors_ND, query_ND, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, true_rows, strict=True)])
    assert recall >= 0.93 and gallery.index.recall >= 0.95
    for query_D, some, told in zip(query_ND, rows, distance, strict=True):
        wide_D = np.asarray(query_D, np.float32).astype(np.float64)
        exact = np.linalg.norm(vectors_ND[some].astype(np.float64) - wide_D, axis=1)
        np.testing.assert_allclose(told, exact, rtol=1e-12)
        assert (np.diff(told) >= 0).all()
    assert np.asarray(distance).min() >= true_distance.min()


def test_exact_search_stays_at_hand_beside_an_index(folder: Path) -> None:
    query_ND = clusters(20, seed=3)
    exact = Gallery.open(folder, exact=True)
    assert found(exact, query_ND, 7)[0] == brute_force(clusters(12_000), query_ND, 7)[0]


def test_more_than_an_index_offers_is_looked_for_exactly(indexed: tuple[Gallery, np.ndarray]) -> None:
    gallery, vectors_ND = indexed
    query_ND = clusters(1, seed=4)
    (rows,), _ = found(gallery, query_ND, 12_000)
    assert rows == brute_force(vectors_ND, query_ND, 12_000)[0][0]


@pytest.mark.slow
def test_the_same_features_make_the_same_ivfpq_index(ivfpq: Path, tmp_path: Path) -> None:
    again = made(tmp_path / "again", "ivfpq")
    assert Gallery.open(again)._manifest == Gallery.open(ivfpq)._manifest


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_index_is_noticed_when_the_gallery_is_opened(tmp_path, damage: str) -> None:
    make(tmp_path, clusters(1500), index="hnsw")
    (path,) = tmp_path.glob("v-*/index.faiss")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(data if damage == "flipped" else data[:-10])
    with pytest.raises(GalleryError, match=r"index\.faiss"):
        Gallery.open(tmp_path)


def test_the_kind_goes_by_size_and_too_few_images_are_refused() -> None:
    sizes = {1: "exact", 49_999: "exact", 50_000: "hnsw", 299_999: "hnsw", 300_000: "ivfpq", 10**7: "ivfpq"}
    assert {count: kind_for("auto", count) for count in sizes} == sizes
    assert kind_for("exact", 10**7) == "exact"
    with pytest.raises(GalleryError, match="ivfpq needs 10000 images or more, not 9999; use exact"):
        kind_for("ivfpq", 9999)
    with pytest.raises(GalleryError, match="there are: auto, exact, hnsw, ivfpq"):
        kind_for("annoy", 10**6)


@pytest.mark.parametrize("queries", [1, 40])
def test_vectors_too_many_to_copy_are_scanned_where_they_lie(monkeypatch: pytest.MonkeyPatch, queries: int) -> None:
    monkeypatch.setattr(search, "_LARGEST_COPY_BYTES", 0)
    monkeypatch.setattr(search, "_CHUNK", 97)
    vectors_ND = clusters(1000)
    vectors_ND[500:520] = vectors_ND[3]  # ties across chunks
    query_ND = np.concatenate([vectors_ND[3:4], clusters(queries, seed=2)])
    rows, distance = brute_force(vectors_ND, query_ND, 30)
    nearest = ExactSearch(vectors_ND).nearest(query_ND, 30)
    assert [one.rows_M.tolist() for one in nearest] == rows
    np.testing.assert_allclose([one.distance_M for one in nearest], distance, atol=1e-12)


def test_a_gpu_that_is_not_there_is_an_error_and_no_fall_back(tmp_path) -> None:
    make(tmp_path, np.eye(4))
    with pytest.raises(GalleryError, match=r"GPU 7 was asked for, but this faiss finds"):
        found(Gallery.open(tmp_path, gpu=7), np.eye(4)[:1], 1)


def test_nearest_others_leave_oneself_out_and_keep_the_order_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.gallery.vectors._CHUNK", 13)
    vectors_ND = RANDOM.integers(0, 3, (80, 3)).astype(np.float64)  # many equals
    found_MK = nearest_others(vectors_ND, np.arange(80), k=6)
    for row, near in enumerate(found_MK.tolist()):
        distance = ((vectors_ND - vectors_ND[row]) ** 2).sum(axis=1)
        others = [other for other in range(80) if other != row]
        assert near == sorted(others, key=lambda other, d=distance: (d[other], other))[:6]


def test_a_hub_is_counted_and_the_skewness_is_that_of_the_counts() -> None:
    # A star: the middle is the nearest of all others, whose own neighbours are far.
    star_ND = np.concatenate([np.zeros((1, 20)), np.eye(20)])
    measured = hubness(star_ND)
    assert measured is not None
    assert (measured.largest, measured.row, measured.measured) == (20, 0, 21)
    near_MK = nearest_others(star_ND, np.arange(21), k=5)
    from scipy.stats import skew

    assert measured.skewness == pytest.approx(skew(np.bincount(near_MK.ravel(), minlength=21)))
    assert hubness(star_ND[:2]) is None


@pytest.mark.slow
def test_an_index_that_looks_at_every_list_is_written_with_the_recall_it_has(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(index, "_RECALL_GOAL", 1.1)  # no index is that good
    gallery = make(tmp_path, clusters(10_000), index="ivfpq")
    assert gallery.index.breadth == 2 ** round(np.log2(4 * np.sqrt(10_000)))
