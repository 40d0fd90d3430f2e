"""Distances and order against brute force in float64 (scipy), and what a gallery refuses to answer."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from galleries import SHA, brute_force, found, make

from convlens.errors import GalleryError, RequestError
from convlens.gallery import Gallery


@pytest.fixture(params=["differences", "matrix products"])
def faiss_path(request, monkeypatch):
    """faiss computes distances in two ways; which one depends on its version and the number of queries."""
    if request.param == "matrix products":
        monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 1)


@pytest.mark.usefixtures("faiss_path")
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("queries", [1, 40])
def test_distances_and_order_are_those_of_brute_force(tmp_path, unit, queries):
    rng = np.random.default_rng(queries)
    vectors, query = rng.standard_normal((500, 64)), rng.standard_normal((queries, 64))
    ids, distances = found(make(tmp_path, vectors, feature_space="unit" if unit else "raw"), query, 9)
    expected_ids, expected = brute_force(vectors, query, 9, unit=unit)
    assert ids == expected_ids
    # unit vectors are stored as float32: each of 64 values below 1 is off by at most 3e-8; raw ones are float32 already
    np.testing.assert_allclose(distances, expected, rtol=1e-13, atol=1e-6 if unit else 0)


@pytest.mark.usefixtures("faiss_path")
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("queries", [1, 40])
def test_near_duplicates_keep_their_order_and_their_small_distances(tmp_path, unit, queries):
    # 300 steps of 1e-4 along one axis, 9e-4 in all when squared; faiss's matrix products are off by 4e-3 at this length
    rng = np.random.default_rng(0)
    vectors = np.repeat(10 + rng.standard_normal((1, 256)), 300, axis=0)
    vectors[:, 5] += 1e-4 * rng.permutation(300)
    query = np.repeat(vectors[vectors[:, 5].argmin()][None], queries, axis=0)
    ids, distances = found(make(tmp_path, vectors, feature_space="unit" if unit else "raw"), query, 20)
    expected_ids, expected = brute_force(vectors, query, 20, unit=unit)
    np.testing.assert_allclose(distances, expected, rtol=1e-13, atol=1e-6 if unit else 0)
    if not unit:  # normalising rounds the steps away, so that there the order among equals is the gallery's
        assert ids == expected_ids


def test_a_vector_of_the_gallery_finds_itself_at_exactly_zero(tmp_path):
    vectors = np.random.default_rng(1).standard_normal((100, 1280)) * 30
    ids, distances = found(make(tmp_path, vectors, feature_space="unit"), vectors, 1)
    assert ids == [[n] for n in range(100)]
    assert (distances == 0).all()


def test_equal_distances_come_in_the_order_of_the_gallery(tmp_path):
    corners = np.array([[0, 1], [3, 4], [1, 0], [0, -1], [5, 0], [-1, 0], [0, 1]], dtype=float)
    ids, distances = found(make(tmp_path, corners), [[0.0, 0.0]], 7)
    assert ids == [[0, 2, 3, 5, 6, 1, 4]]
    assert distances.tolist() == [[1, 1, 1, 1, 1, 5, 5]]


def test_a_thousand_copies_of_one_image_still_come_in_the_order_of_the_gallery(tmp_path):
    vectors = np.repeat([[3.0, 4.0]], 1000, axis=0)
    vectors[0] = 9
    assert found(make(tmp_path, vectors), [[0.0, 0.0]], 5)[0] == [[1, 2, 3, 4, 5]]


def test_a_row_is_answered_alike_whatever_stands_beside_it(tmp_path):
    rng = np.random.default_rng(2)
    gallery = make(tmp_path, rng.standard_normal((400, 96)), feature_space="unit")
    query = rng.standard_normal((33, 96)).astype(np.float32)
    together = gallery.query(query, k=6)
    assert together == tuple(gallery.query(row[None], k=6)[0] for row in query)


def test_the_neighbour_carries_id_label_and_thumbnail(tmp_path):
    ((neighbour,),) = make(tmp_path, np.eye(5)).query(np.eye(5, dtype=np.float32)[4:], k=1)
    assert (neighbour.id, neighbour.label, neighbour.thumbnail) == ("p4", "label 1", b"\xff\xd8 picture 4")


def test_no_rows_give_no_answers(tmp_path):
    assert make(tmp_path, np.eye(3)).query(np.zeros((0, 3), dtype=np.float32), k=2) == ()


def test_all_of_the_gallery_can_be_asked_for(tmp_path):
    assert found(make(tmp_path, np.diag([1.0, 2.0, 3.0])), [[0.0, 0.0, 0.0]], 3)[0] == [[0, 1, 2]]


@pytest.mark.parametrize("k", [0, -1, 6, True, 2.0, "2"])
def test_k_outside_the_gallery_is_refused_with_its_size(tmp_path, k):
    with pytest.raises(RequestError, match=r"holds 5 images; use 1\.\.5") as error:
        make(tmp_path, np.eye(5)).query(np.eye(5, dtype=np.float32), k=k)
    assert error.value.field == "options.k"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (np.zeros((1, 4)), "all zero"),
        (np.array([[1, np.nan, 0, 0]]), "row 0 is NaN"),
        (np.array([[1, 0, 0, 0], [np.inf, 0, 0, 0]]), "row 1 is NaN, infinite"),
        (np.full((1, 4), 1e30), "longer than"),
        (np.ones((1, 5)), "have 5 values, the gallery's have 4"),
        (np.ones(4), "must be floats"),
        (np.ones((1, 4), dtype=int), "must be floats"),
    ],
)
def test_a_query_without_a_meaning_is_refused(tmp_path, query, says):
    with pytest.raises(GalleryError, match=says):
        make(tmp_path, np.eye(4), feature_space="unit").query(query, k=1)


def test_zeros_are_a_point_like_any_other_in_the_raw_space(tmp_path):
    assert found(make(tmp_path, [[3.0, 4.0]]), np.zeros((1, 2)), 1)[1].tolist() == [[5.0]]


def test_other_weights_are_refused_with_both_hashes(tmp_path):
    gallery = make(tmp_path, np.eye(2))
    gallery.require_weights(SHA)
    with pytest.raises(GalleryError, match=r"0123456789ab, but .* ffffffffffff; use .* build"):
        gallery.require_weights("f" * 64)


def test_eight_threads_get_what_one_gets_and_build_one_index(tmp_path, monkeypatch):
    built = []

    class Slow(faiss.IndexFlatL2):
        def __init__(self, dimensions):
            built.append(dimensions)
            time.sleep(0.05)  # long enough for every other thread to find the index missing
            super().__init__(dimensions)

    rng = np.random.default_rng(3)
    make(tmp_path, rng.standard_normal((300, 32)))
    queries = [rng.standard_normal((5, 32)).astype(np.float32) for _ in range(64)]
    alone = Gallery.open(tmp_path)
    expected = [alone.query(query, k=4) for query in queries]
    monkeypatch.setattr(faiss, "IndexFlatL2", Slow)
    shared = Gallery.open(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: shared.query(query, k=4), queries)) == expected
    assert built == [32]


def test_importing_opening_and_writing_load_neither_faiss_nor_torch(tmp_path):
    make(tmp_path / "gallery", np.eye(3))
    script = (
        "import sys; from pathlib import Path; from convlens.gallery import Gallery, write; "
        "Gallery.open(Path(sys.argv[1])); sys.exit(sum(name in sys.modules for name in ('faiss', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "gallery")], check=True, timeout=60)
