"""Sweeps on the device that holds the network: the same scores as window by window, whatever memory allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import CPU, pictures
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.explain.sweeps.backends import SweepRequest
from convlens.explain.sweeps.device import DeviceSweep
from convlens.explain.sweeps.windows import Windows
from convlens.types import no_op

WINDOWS = Windows(10, 12, window=4, stride=3)


class Cramped(nn.Module):
    """Runs out of memory for more than so many images at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convolution = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 4)
        self.most = most
        self.batches: list[int] = []

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.batches.append(len(x_NCHW))
        if len(x_NCHW) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(self.convolution(x_NCHW).relu().mean((2, 3)))


def request(x_CHW: Tensor, score: Any = "logit", fill: float = 0.3) -> SweepRequest:
    return SweepRequest(x_CHW, 2, WINDOWS, fill, score)


def one_by_one(module: nn.Module, asked: SweepRequest) -> np.ndarray:
    """Each window filled in a copy of its own by slicing, each copy alone through the network, in float64."""
    module, values = module.double(), []
    for top, left in WINDOWS.corners:
        copy_CHW = asked.x_CHW.double().clone()
        copy_CHW[:, top : top + 4, left : left + 4] = asked.fill
        logits_K = module(copy_CHW[None])[0].detach()
        values.append(float((logits_K.softmax(0) if asked.score == "probability" else logits_K)[2]))
    module.float()
    return np.array(values).reshape(len(WINDOWS.tops), len(WINDOWS.lefts))


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_scores_are_those_of_windows_filled_one_by_one(score: str, channels_last: bool) -> None:
    module = Cramped(1000).eval()
    asked = request(pictures(1, 3, 10, 12)[0].float(), score)
    sweep = DeviceSweep(module, CPU, channels_last=channels_last)
    found = sweep.scores(asked, no_op)
    np.testing.assert_allclose(found, one_by_one(module, asked), rtol=1e-5, atol=1e-6)
    some = sweep.scores_at(asked, [0, 5, len(WINDOWS) - 1])
    np.testing.assert_allclose(some, found.reshape(-1)[[0, 5, len(WINDOWS) - 1]], rtol=1e-5)


@pytest.mark.parametrize("most", [1, 3, 7])
def test_batches_are_halved_until_they_fit_and_stay_so(most: int) -> None:
    module = Cramped(most).eval()
    asked, steps = request(pictures(1, 3, 10, 12)[0].float()), list[int]()
    sweep = DeviceSweep(module, CPU)
    found = sweep.scores(asked, steps.append)
    assert sum(steps) == len(WINDOWS)
    assert max(steps) <= most
    module.batches.clear()
    np.testing.assert_array_equal(sweep.scores(asked, no_op), found)
    assert max(module.batches) <= most, "what did not fit is not tried again"


def test_what_does_not_fit_even_alone_is_said() -> None:
    module = Cramped(0).eval()
    with pytest.raises(torch.OutOfMemoryError):
        DeviceSweep(module, CPU).scores(request(pictures(1, 3, 10, 12)[0].float()), no_op)


def test_a_network_that_gives_nan_for_some_windows_is_refused() -> None:
    module = Cramped(1000).eval()
    module.head.bias.data[0] = float("nan")  # another class than the target's
    with pytest.raises(ModelError, match="NaN or infinite"):
        DeviceSweep(module, CPU).scores(request(pictures(1, 3, 10, 12)[0].float()), no_op)


def test_half_precision_works_on_a_copy() -> None:
    module = Cramped(1000).eval()
    asked = request(pictures(1, 3, 10, 12)[0].float())
    full = DeviceSweep(module, CPU).scores(asked, no_op)
    half = DeviceSweep(module, CPU, precision="half").scores(asked, no_op)
    assert next(module.parameters()).dtype == torch.float32
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()  # bfloat16 keeps 8 bits of mantissa


def test_a_sweep_does_not_keep_its_network() -> None:
    module = Cramped(1000).eval()
    sweep = DeviceSweep(module, CPU)
    del module
    with pytest.raises(AssertionError, match="holds the network"):
        sweep.scores(request(pictures(1, 3, 10, 12)[0].float()), no_op)
