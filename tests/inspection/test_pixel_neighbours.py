"""Nearest images by their pixels, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest

from convlens.inspection.pixel_neighbours import nearest_by_pixels

RANDOM = np.random.default_rng(0)


def test_distances_are_those_of_float64() -> None:
    views = list(RANDOM.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8))
    queries = list(RANDOM.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8))
    result = nearest_by_pixels(queries, iter(views), k=12, excluded=[frozenset()] * 3)
    for query, some in zip(queries, result, strict=True):
        expected = {n: float(np.linalg.norm(view.astype(np.float64) - query)) for n, view in enumerate(views)}
        assert [near.row for near in some] == sorted(expected, key=expected.__getitem__)
        assert [near.distance for near in some] == pytest.approx(sorted(expected.values()), rel=1e-12)


def test_rows_left_out_do_not_count_and_equals_keep_their_order() -> None:
    view = RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    (result,) = nearest_by_pixels([view], [view, view, view], k=2, excluded=[frozenset([0])])
    assert [(near.row, near.distance) for near in result] == [(1, 0.0), (2, 0.0)]
