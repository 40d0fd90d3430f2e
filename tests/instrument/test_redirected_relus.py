"""Redirected gradients: only where nothing else passes, and only towards life."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convlens.instrument import RedirectedRelus


def gradient(relu: nn.Module, x: list[list[float]], up: list[list[float]]) -> list[list[float]]:
    x_NC = torch.tensor(x, requires_grad=True)
    with RedirectedRelus():
        (grad,) = torch.autograd.grad(relu(x_NC), x_NC, torch.tensor(up))
    return grad.tolist()


def test_where_some_unit_of_the_row_is_on_the_gradient_is_the_true_one() -> None:
    assert gradient(nn.ReLU(), [[1.0, -1.0]], [[2.0, 3.0]]) == [[2.0, 0.0]]


def test_where_all_are_off_it_passes_but_for_what_would_push_them_further_off() -> None:
    assert gradient(nn.ReLU(), [[-1.0, -1.0]], [[2.0, -3.0]]) == [[2.0, 0.0]]


def test_rows_are_judged_one_by_one() -> None:
    found = gradient(nn.ReLU(), [[1.0, -1.0], [-1.0, -1.0]], [[2.0, 3.0], [2.0, 3.0]])
    assert found == [[2.0, 0.0], [2.0, 3.0]]


@pytest.mark.parametrize("relu", [nn.ReLU6(), nn.Hardtanh(0.0, 6.0)])
def test_at_the_upper_end_nothing_is_pushed_further_up(relu: nn.Module) -> None:
    assert gradient(relu, [[8.0, 9.0, -1.0]], [[2.0, -3.0, 4.0]]) == [[0.0, -3.0, 4.0]]
