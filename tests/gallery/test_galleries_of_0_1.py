"""Galleries that version 0.1.0 built, grew, or left half-built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import written

from convlens.gallery import Gallery, add, build

NAMES = ("gallery", "gallery-grown", "gallery-interrupted")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written.copied(tmp_path)


def assert_as_expected(gallery: Gallery, name: str) -> None:
    expected = written.expected(name)
    assert gallery.feature_space == expected["feature_space"]
    assert gallery.index.kind == expected["index"]
    assert [[entry.id, entry.label] for entry in gallery.entries] == [entry[:2] for entry in expected["entries"]]
    np.testing.assert_allclose(gallery.features_ND, expected["features"], rtol=1e-5)
    found = gallery.query(np.array(expected["query"], np.float32), k=3)
    assert [[[n.id, n.label] for n in row] for row in found] == [[n[:2] for n in row] for row in expected["neighbours"]]
    distances = [[n[2] for n in row] for row in expected["neighbours"]]
    np.testing.assert_allclose([[n.distance for n in row] for row in found], distances, rtol=1e-5)
    if expected["hubness"] is None:
        assert gallery.hubness is None
    else:
        assert gallery.hubness is not None
        np.testing.assert_allclose(list(vars(gallery.hubness).values()), expected["hubness"])


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_and_answers_as_then(folder: Path, name: str) -> None:
    gallery = Gallery.open(folder / name)
    assert_as_expected(gallery, name)
    assert [len(entry.thumbnail) for entry in gallery.entries] == [n for *_, n in written.expected(name)["entries"]]
    gallery.require_weights(written.network(folder).spec.weights_sha256)


def test_what_grows_it_now_gives_what_growing_it_then_gave(folder: Path) -> None:
    before = Gallery.open(folder / "gallery").features_ND.copy()
    report = add(folder / "more", folder / "gallery", written.network(folder), batch=2)
    assert report.added == written.expected("gallery-grown")["added"]
    assert_as_expected(report.gallery, "gallery-grown")
    np.testing.assert_array_equal(report.gallery.features_ND[: len(before)], before)
    assert {len(entry.thumbnail) > 0 for entry in report.gallery.entries} == {True}


def test_a_build_that_was_begun_then_is_finished_now(folder: Path) -> None:
    out = folder / "gallery-interrupted"
    written.as_if_with_these_libraries(out / ".extraction" / ".partial" / "settings.json")
    steps: list[int] = []
    report = build(
        folder / "images",
        out,
        written.network(folder),
        batch=2,
        thumbnail_side=8,
        feature_space="raw",
        on_step=lambda done, _: steps.append(done),
    )
    assert steps[0] == 4
    assert [id for id, _ in report.unreadable] == [id for id, _ in written.expected("gallery")["unreadable"]]
    raw_ND = report.gallery.features_ND
    unit_ND = raw_ND / np.linalg.norm(raw_ND, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_ND, written.expected("gallery")["features"], rtol=1e-5)
    assert not (out / ".extraction").exists()
