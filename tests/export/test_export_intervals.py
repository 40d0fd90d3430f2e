"""What a change in a layer's input touches, and what a crop of it gets right, against torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from export.incremental.intervals import Reach, Span

LAYERS: dict[str, tuple[Callable[[Tensor], Tensor], Reach]] = {
    "conv": (lambda x: F.conv1d(x, torch.ones(1, 1, 3), padding=1), Reach(3, 1, 1, 1)),
    "conv, stride": (lambda x: F.conv1d(x, torch.ones(1, 1, 7), stride=2, padding=3), Reach(7, 2, 3, 3)),
    "conv, no padding": (lambda x: F.conv1d(x, torch.ones(1, 1, 4), stride=3), Reach(4, 3)),
    "conv, uneven padding": (lambda x: F.conv1d(F.pad(x, (0, 1)), torch.ones(1, 1, 3), stride=2), Reach(3, 2, 0, 1)),
    "conv, kernel below stride": (lambda x: F.conv1d(x, torch.ones(1, 1, 1), stride=2), Reach(1, 2)),
    "pool": (lambda x: F.avg_pool1d(x, 3, 2, 1), Reach(3, 2, 1, 1)),
    "pool, ceil": (lambda x: F.avg_pool1d(x, 3, 2, ceil_mode=True), Reach(3, 2, ceil=True)),
    "pool, ceil and padding": (lambda x: F.avg_pool1d(x, 2, 2, 1, ceil_mode=True), Reach(2, 2, 1, 1, ceil=True)),
    "pool, true mean": (
        lambda x: F.avg_pool1d(x, 4, 3, 1, ceil_mode=True, count_include_pad=False),
        Reach(4, 3, 1, 1, ceil=True),
    ),
}


@pytest.mark.parametrize("length", [11, 12, 13, 14])
@pytest.mark.parametrize("name", LAYERS)
def test_what_a_change_touches_is_what_torch_says(name: str, length: int) -> None:
    layer, reach = LAYERS[name]
    start, stop = (np.array(side) for side in zip(*_intervals(length), strict=True))
    outputs = len(layer(torch.zeros(1, 1, length))[0, 0])
    assert reach.size(length) == outputs
    found = reach.changed(Span(start, stop), outputs)
    for index, (first, last) in enumerate(zip(start, stop, strict=True)):
        x_11L = torch.zeros(1, 1, length)
        x_11L[..., first:last] = 1.0  # weights are positive: whatever reads it is not zero
        touched = np.flatnonzero(layer(x_11L)[0, 0].numpy())
        assert list(range(int(found.start[index]), int(found.stop[index]))) == touched.tolist()


@pytest.mark.parametrize("length", [11, 12, 13, 14])
@pytest.mark.parametrize("name", LAYERS)
def test_what_a_crop_gets_right_is_what_torch_gets_right(name: str, length: int) -> None:
    layer, reach = LAYERS[name]
    x_11L = torch.rand(1, 1, length, dtype=torch.float64) + 1.0
    whole = layer_64(layer, x_11L)
    for start, stop in _intervals(length):
        if start % reach.stride or reach.size(stop - start) < 1:
            continue
        crop = layer_64(layer, x_11L[..., start:stop])
        begin = start // reach.stride
        made = Span(np.array([begin]), np.array([min(begin + len(crop), len(whole))]))
        found = reach.trusted(Span(np.array([start]), np.array([stop])), length, made)
        # In float32: what is right differs in its last digit at most, what is wrong by a whole value above 1.
        right = [y for y in range(begin, int(made.stop[0])) if abs(crop[y - begin] - whole[y]) < 1e-5]
        assert list(range(int(found.start[0]), int(found.stop[0]))) == right


def layer_64(layer: Callable[[Tensor], Tensor], x_11L: Tensor) -> np.ndarray:
    return np.asarray(layer(x_11L.float())[0, 0].double().numpy())


def _intervals(length: int) -> list[tuple[int, int]]:
    return [(start, stop) for start in range(length) for stop in range(start + 1, length + 1)]
