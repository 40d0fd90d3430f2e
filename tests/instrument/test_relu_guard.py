"""Which networks have a ReLU rule, and what those that have none are told."""

from __future__ import annotations

import nets
import pytest
import reference_gradients
import torch
from torch import nn
from torch.nn import functional as F
from unsupported_activations import UNSUPPORTED, with_relu

from convlens.errors import UnsupportedModelError
from convlens.instrument import RuledRelus, require_relu_network


def checked(module: nn.Module) -> None:
    x = nets.pictures(2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    with RuledRelus():
        logits = module(x)
    require_relu_network(logits, method="guided_backprop")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_rule_is_refused_by_name(name: str) -> None:
    make, word = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModelError, match=f"guided_backprop is defined for ReLU networks only.*{word}"):
        checked(with_relu(make()))


RULED = {
    "mixed": lambda: nets.Mixed().eval(),
    "squeeze and excite": lambda: nets.Sequential(nets.SqueezeExcite(4)),
    "pre-activation": lambda: nets.Sequential(nets.PreActivation(4)).eval(),
    "spatial gate": lambda: nets.Sequential(nets.Call(lambda x: F.relu(x) * x.mean(1, keepdim=True).sigmoid())),
    "local response normalisation": lambda: nets.Sequential(nn.Sequential(nn.ReLU(), nn.LocalResponseNorm(3))),
    "product of two ReLU branches": lambda: nets.Sequential(_TwoBranches()),
    "tanh beside ReLU": lambda: nets.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh())),
    "a guarded division": lambda: nets.Sequential(
        nets.Call(lambda x: F.relu(x) / x.norm(dim=1, keepdim=True).clamp(1e-6))
    ),
}


class _TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.left(x) + x) * torch.relu(self.right(x) + x)


@pytest.mark.parametrize("name", RULED)
def test_relu_networks_with_gates_and_norms_are_accepted(name: str) -> None:
    checked(RULED[name]())


def test_a_network_without_any_relu_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="this network calls none; use saliency"):
        checked(nets.Sequential(nn.Tanh()))


def test_a_refusal_leaves_no_mode_behind() -> None:
    with pytest.raises(UnsupportedModelError):
        checked(with_relu(nn.SiLU()))
    assert reference_gradients.function_modes() == []
