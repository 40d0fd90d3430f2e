"""Means in place of maxima, however pooling is spelled, for one thread alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_1

from convlens.instrument import AveragePooling

X = torch.rand(1, 2, 7, 7, generator=torch.Generator().manual_seed(0))
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.MaxPool2d": nn.MaxPool2d(2),
    "F.max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "by name": lambda x: F.max_pool2d(x, kernel_size=3, stride=2),
    "ceil_mode": nn.MaxPool2d(3, 2, ceil_mode=True),
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
}


def means(x_NCHW: Tensor, kernel: int, stride: int, padding: int, ceil: bool) -> Tensor:
    """Window by window, of what lies in the picture."""
    length = x_NCHW.shape[2]
    span = length + 2 * padding - kernel
    count = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (count - 1) * stride >= length + padding:
        count -= 1
    out = torch.empty(*x_NCHW.shape[:2], count, count)
    for i in range(count):
        for j in range(count):
            rows = slice(max(0, i * stride - padding), i * stride - padding + kernel)
            columns = slice(max(0, j * stride - padding), j * stride - padding + kernel)
            out[:, :, i, j] = x_NCHW[:, :, rows, columns].mean((2, 3))
    return out


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nn.MaxPool2d", (2, 2, 0, False)),
        ("F.max_pool2d", (3, 2, 1, False)),
        ("by name", (3, 2, 0, False)),
        ("ceil_mode", (3, 2, 0, True)),
        ("torch.max_pool2d", (2, 2, 0, False)),
    ],
)
def test_each_spelling_takes_the_mean_of_its_windows(name: str, settings: tuple[int, int, int, bool]) -> None:
    with AveragePooling() as pools:
        found = POOLS[name](X)
    torch.testing.assert_close(found, means(X, *settings))
    assert pools.calls == 1
    assert found.shape == POOLS[name](X).shape
    assert not torch.equal(found, POOLS[name](X))  # the maximum again


def test_indices_and_dilation_are_left_alone() -> None:
    with AveragePooling() as pools:
        values, indices = F.max_pool2d(X, 2, return_indices=True)
        wide = F.max_pool2d(X, 2, dilation=2)
    assert pools.calls == 0
    torch.testing.assert_close(values, F.max_pool2d(X, 2))
    torch.testing.assert_close(wide, F.max_pool2d(X, 2, dilation=2))
    assert indices.dtype == torch.int64


def test_a_real_network_s_pools_are_all_met_and_no_other_thread_notices() -> None:
    net = squeezenet1_1(weights=None).eval()
    x_NCHW = torch.rand(1, 3, 64, 64)
    elsewhere: list[Tensor] = []
    with torch.no_grad(), AveragePooling() as pools:
        inside = net(x_NCHW)
        thread = threading.Thread(target=lambda: elsewhere.append(F.max_pool2d(X, 2)))
        thread.start()
        thread.join()
    assert pools.calls == sum(isinstance(part, nn.MaxPool2d) for part in net.modules())
    torch.testing.assert_close(elsewhere[0], F.max_pool2d(X, 2))
    with torch.no_grad():
        assert not torch.allclose(inside, net(x_NCHW))
