"""Maps of features: PCA against scikit-learn's, t-SNE by what it promises, and what is said of both."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from convlens import load
from convlens.errors import RequestError
from convlens.gallery import build
from convlens.gallery.vectors import nearest_others
from convlens.inspection import projection
from convlens.inspection.pixel_neighbours import nearest_by_pixels, views_of_files
from convlens.inspection.projection import (
    draw_map,
    label_agreement,
    principal_components,
    project,
    shared_neighbours,
)

RANDOM = np.random.default_rng(0)


def test_labels_too_many_for_the_legend_are_named_by_the_grey_that_they_are_drawn_in() -> None:
    labels = [f"label {n}" for n in range(14)]
    grey = (138, 143, 152)
    few, many = (
        draw_map(RANDOM.normal(size=(count, 2)), labels[:count], [b""] * count, caption="") for count in (12, 14)
    )
    # The square of the map is 1600 pixels within a margin of 16; below are the swatches, of 14 by 14 pixels.
    below_few, below_many = ((sheet[16 + 1600 :] == grey).all(axis=2).sum() for sheet in (few, many))
    assert (below_few, below_many) == (0, 14 * 14)


@pytest.mark.parametrize("shape", [(300, 40), (30, 200)])
def test_principal_components_are_scikit_learn_s_to_sign(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "_CHUNK", 64)  # so that several chunks are read
    vectors_ND = (RANDOM.normal(size=shape) * np.linspace(1, 5, shape[1])).astype(np.float32)
    ours, theirs = principal_components(vectors_ND, 6), PCA(6, svd_solver="full").fit(vectors_ND.astype(np.float64))
    signs = np.sign((ours.components_PD * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.components_PD * signs[:, None], theirs.components_, atol=1e-9)
    np.testing.assert_allclose(ours.explained_P, theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(ours.coordinates_NP * signs, theirs.transform(vectors_ND.astype(np.float64)), atol=1e-8)


def test_signs_are_the_same_however_the_vectors_come() -> None:
    vectors_ND = RANDOM.normal(size=(50, 7))
    first, second = principal_components(vectors_ND, 3), principal_components(vectors_ND[::-1], 3)
    np.testing.assert_allclose(first.components_PD, second.components_PD, atol=1e-9)


def test_explained_variance_is_that_of_the_singular_values() -> None:
    vectors_ND = RANDOM.normal(size=(40, 9))
    squares = np.linalg.svd(vectors_ND - vectors_ND.mean(0), compute_uv=False) ** 2
    result = project(vectors_ND, ["a"] * 40, method="pca")
    np.testing.assert_allclose(result.explained_variance, squares[:2] / squares.sum(), rtol=1e-10)


def test_tsne_keeps_blobs_apart_and_says_how_far_it_may_be_trusted() -> None:
    vectors_ND, blobs = make_blobs(400, n_features=30, centers=5, random_state=1)
    labels = [f"blob {n}" for n in blobs]
    result = project(vectors_ND, labels, method="tsne", perplexity=20, threads=2)
    assert result.trustworthiness > 0.9
    assert result.agreement_of_map == pytest.approx(1, abs=0.01)
    again = project(vectors_ND, labels, method="tsne", perplexity=20, threads=2)
    np.testing.assert_array_equal(result.coordinates_N2, again.coordinates_N2)
    np.testing.assert_allclose(result.coordinates_N2.mean(0), 0, atol=1e-9)


def test_nearest_others_are_brute_force_s() -> None:
    vectors_ND = RANDOM.normal(size=(90, 5))
    theirs = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(vectors_ND).kneighbors(return_distance=False)
    np.testing.assert_array_equal(nearest_others(vectors_ND, np.arange(90), k=4), theirs[:, :4])


def test_shared_neighbours_are_the_share_that_brute_force_finds_in_both_spaces() -> None:
    features_ND, map_N2 = RANDOM.normal(size=(60, 8)), RANDOM.normal(size=(60, 2))
    features_NK, map_NK = (
        NearestNeighbors(n_neighbors=5, algorithm="brute").fit(each).kneighbors(return_distance=False)
        for each in (features_ND, map_N2)
    )
    shared = [len(set(near) & set(on_map)) / 5 for near, on_map in zip(features_NK, map_NK, strict=True)]
    assert shared_neighbours(features_ND, map_N2) == pytest.approx(np.mean(shared))


def test_shared_neighbours_are_all_of_them_where_the_map_is_the_features() -> None:
    vectors_N2 = RANDOM.normal(size=(30, 2))
    assert shared_neighbours(vectors_N2, vectors_N2) == 1


def test_label_agreement_counts_by_hand() -> None:
    # On a line: a a b | b b a: neighbours by distance, 2 each.
    vectors_ND = np.array([[0.0], [1.0], [2.5], [10.0], [11.0], [12.5]])
    result = label_agreement(np.repeat(vectors_ND, 1, axis=0), ["a", "a", "b", "b", "b", "a"], np.arange(6))
    # Five others each: every vector has two of its own label among them.
    assert result == pytest.approx(2 / 5)
    assert label_agreement(vectors_ND, list("abcdef"), np.arange(6)) is None
    assert label_agreement(vectors_ND, list("aaaaaa"), np.arange(6)) is None


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (1, {}, "1 image makes no map; use a gallery of 5 or more"),
        (2, {"method": "pca"}, "2 images make no map; use a gallery of 5 or more"),
        (3, {"method": "pca"}, "3 images make no map"),
        (4, {"method": "tsne"}, "4 images make no map"),
        (60, {"method": "tsne", "perplexity": 0.5}, "use 1 or more"),
        (60, {"method": "tsne", "perplexity": float("nan")}, "use 1 or more"),
    ],
)
def test_parameters_that_make_no_map_are_refused_with_the_limit(count: int, given: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        project(RANDOM.normal(size=(count, 8)), ["x"] * count, **given)


@pytest.mark.parametrize(("count", "used"), [(5, 4 / 3), (6, 5 / 3), (20, 19 / 3), (90, 89 / 3), (91, 30.0)])
def test_perplexity_is_lowered_to_a_third_of_the_other_images(
    count: int, used: float, caplog: pytest.LogCaptureFixture
) -> None:
    result = project(RANDOM.normal(size=(count, 8)), ["x"] * count, method="tsne", threads=1)
    assert result.options["perplexity"] == pytest.approx(used)
    assert result.options.get("perplexity_asked_for") == (30.0 if count < 91 else None)
    assert ("perplexity 30 is lowered" in caplog.text) == (count < 91)
    assert np.isfinite(result.coordinates_N2).all()


def test_two_groups_of_a_small_gallery_lie_apart() -> None:
    near, far = RANDOM.normal(size=(6, 8)), RANDOM.normal(size=(6, 8)) + 40
    result = project(np.concatenate([near, far]), ["near"] * 6 + ["far"] * 6, method="tsne", threads=1)
    assert result.agreement_of_map == 1


@pytest.mark.slow
def test_dogs_lie_among_dogs_by_features_and_not_by_pixels(test_data: Path, tmp_path: Path) -> None:
    """Leave-one-out over 509 pictures, one a class: the share of dogs among the 5 nearest of each dog."""
    model, pictures = load(device="cpu"), test_data / "data" / "imagenet"
    gallery = build(pictures, tmp_path / "gallery", model).gallery
    with (pictures / "labels.csv").open(newline="", encoding="utf-8") as file:
        dog = {row["file"]: 151 <= int(row["class_index"]) <= 268 for row in csv.DictReader(file)}
    is_dog = np.array([dog[entry.id] for entry in gallery.entries])
    dogs = np.flatnonzero(is_dog)
    by_features = is_dog[nearest_others(gallery.features_ND, dogs, k=5)].mean()
    assert by_features >= 0.8
    views = list(views_of_files(gallery, pictures, model.spec))
    queries = dogs[::3]
    near = nearest_by_pixels([views[n] for n in queries], views, k=5, excluded=[frozenset([int(n)]) for n in queries])
    by_pixels = np.mean([is_dog[one.row] for some in near for one in some])
    assert by_pixels < 0.25
    mapped = project(gallery.features_ND, ["dog" if each else "other" for each in is_dog], method="tsne", threads=2)
    assert mapped.trustworthiness >= 0.9
