"""Quilting: seams against shortest paths, differences against loops, pixels from the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from synthesis_runs import assert_resumes, period_of, run_to_end, stripes

from convlens.errors import RequestError
from convlens.synth.quilting import Quilt, _OverlapErrors, beyond_cut, minimum_error_cut

RANDOM = np.random.default_rng(0)


def shortest(error_RQ: np.ndarray) -> float:
    """Least sum from any cell of the first row to any of the last, by Dijkstra over a graph of cells."""
    rows, columns = error_RQ.shape
    end, start = rows * columns, rows * columns + 1
    edges: list[tuple[int, int, float]] = []
    for i in range(rows):
        for j in range(columns):
            for k in (j - 1, j, j + 1):
                if i and 0 <= k < columns:
                    edges.append(((i - 1) * columns + k, i * columns + j, error_RQ[i, j]))
    edges += [(start, j, error_RQ[0, j]) for j in range(columns)]
    edges += [((rows - 1) * columns + j, end, 1e-9) for j in range(columns)]
    a, b, weight = zip(*edges, strict=True)
    graph = coo_array((weight, (a, b)), shape=(start + 1, start + 1)).tocsr()
    return float(dijkstra(graph, indices=start)[end])


@pytest.mark.parametrize("shape", [(1, 5), (6, 1), (7, 4), (20, 9)])
def test_a_seam_is_a_shortest_path(shape: tuple[int, int]) -> None:
    for _ in range(5):
        error = RANDOM.random(shape) + 1e-3
        seam = minimum_error_cut(error)
        assert error[np.arange(shape[0]), seam].sum() == pytest.approx(shortest(error), abs=1e-7)
        assert (np.abs(np.diff(seam)) <= 1).all()


def test_a_seam_of_no_error_is_followed() -> None:
    error = np.ones((6, 6))
    path = [2, 3, 4, 4, 3, 2]
    error[np.arange(6), path] = 0
    assert minimum_error_cut(error).tolist() == path
    assert (beyond_cut(error)[0] == [False, False, True, True, True, True]).all()


@pytest.mark.parametrize(("above", "beside"), [(True, False), (False, True), (True, True)])
def test_differences_are_those_of_every_block_one_by_one(above: bool, beside: bool) -> None:
    source = RANDOM.integers(0, 255, (30, 41, 3)).astype(float)
    place = RANDOM.integers(0, 255, (12, 12, 3)).astype(float)
    found = _OverlapErrors(source, 12, 4)(place, above=above, beside=beside)
    mask = np.zeros((12, 12, 1))
    mask[:4] += above
    mask[:, :4] += beside
    wanted = np.array(
        [
            [(np.minimum(mask, 1) * (source[y : y + 12, x : x + 12] - place) ** 2).sum() for x in range(30)]
            for y in range(19)
        ]
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-4)


def test_every_pixel_is_the_source_s_pixel_that_it_says(saved: Callable[..., str]) -> None:
    source = RANDOM.integers(0, 255, (50, 60, 3)).astype(np.uint8)
    work = Quilt(source=saved(source), height=90, width=70, block=18).begin(None)
    found = run_to_end(work).images["texture"]
    assert found.shape == (90, 70, 3)
    origin = work.origin_HW2[:90, :70]
    assert (origin >= 0).all()
    np.testing.assert_array_equal(found, source[origin[..., 0], origin[..., 1]])
    # Blocks are whole: most neighbours are neighbours in the source.
    step = np.diff(origin[..., 1], axis=1)
    assert (step == 1).mean() > 0.8


@pytest.mark.parametrize("period", [8, 12])
def test_stripes_keep_their_period_and_have_no_break(saved: Callable[..., str], period: int) -> None:
    source = stripes(96, period)
    found = run_to_end(Quilt(source=saved(source), height=192, width=192, block=24).begin(None)).images["texture"]
    assert period_of(found) == pytest.approx(period, rel=0.02)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))  # each column is of one colour


def test_a_corner_is_cut_by_both_seams(saved: Callable[..., str]) -> None:
    """The new block shows where it lies beyond the seam above and beyond the one beside."""
    work = Quilt(source=saved(RANDOM.integers(0, 255, (40, 40, 3))), block=20, overlap=8).begin(None)
    old, new = (RANDOM.integers(0, 255, (20, 20, 3)).astype(np.uint8) for _ in range(2))
    error = ((old.astype(float) - new) ** 2).sum(2)
    beside, above = minimum_error_cut(error[:, :8]), minimum_error_cut(error[:8].T)
    shown = work._shown(old, new, above=True, beside=True)
    for i in range(20):
        for j in range(20):
            assert shown[i, j] == ((j >= 8 or j >= beside[i]) and (i >= 8 or i >= above[j]))
    assert not shown[:8, :8].all()


def test_the_source_itself_comes_out_where_there_is_no_choice(saved: Callable[..., str]) -> None:
    """A source whose blocks all differ: the only block that fits is the next one."""
    source = RANDOM.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    work = Quilt(source=saved(source), height=40, width=40, block=20, overlap=10, tolerance=0.0, seed=1).begin(None)
    run_to_end(work)
    origin = work.origin_HW2[:40, :40]
    first = origin[0, 0]
    if (first <= 24).all():  # the picture fits below and right of the first block
        wanted = first + np.moveaxis(np.mgrid[0:40, 0:40], 0, 2)
        np.testing.assert_array_equal(origin, wanted)
    else:
        pytest.fail("choose a seed whose first block leaves room")


def test_it_resumes_bit_by_bit(saved: Callable[..., str]) -> None:
    path = saved(RANDOM.integers(0, 255, (40, 40, 3)))
    assert_resumes(lambda: Quilt(source=path, height=60, width=60, block=16, seed=5).begin(None), every=3)


def test_other_seeds_give_other_textures(saved: Callable[..., str]) -> None:
    path = saved(RANDOM.integers(0, 255, (40, 40, 3)))
    one, two, again = (
        run_to_end(Quilt(source=path, height=40, width=40, block=16, seed=n).begin(None)).images["texture"]
        for n in (1, 2, 1)
    )
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"block": 2}, "block", "from 4 to 8192"),
        ({"overlap": 30}, "overlap", "half a block"),
        ({"tolerance": -0.1}, "tolerance", "0 or more"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Quilt(source="x.png", **options)
    assert caught.value.field == field


def test_small_and_empty_sources_are_refused(saved: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match="blocks of 48 pixels are larger than the source of 40×40"):
        Quilt(source=saved(RANDOM.integers(0, 255, (40, 40, 3)))).begin(None)
    with pytest.raises(RequestError, match="of one colour"):
        Quilt(source=saved(np.zeros((60, 60, 3)))).begin(None)
    with pytest.raises(RequestError, match=r"source: no picture /no\.png"):
        Quilt(source="/no.png").begin(None)
    assert Image.MAX_IMAGE_PIXELS  # untouched
