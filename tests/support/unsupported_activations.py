"""Activations for which no ReLU rule is defined, or in which none can be applied; each must be refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nets
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0] > 0)


class _Fusible(nn.Module):
    """Element-wise steps only: after two runs torch.jit makes one graph node of them, whose ReLUs are hidden."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * 2.0 + 0.1) * x.tanh() + torch.relu(x * 3.0 - 0.1) * 2.0


class _WithRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convolution(x))


def _warmed_up(module: nn.Module) -> nn.Module:
    for _ in range(4):
        module(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
    return module


def _half_silu(x: Tensor) -> Tensor:
    return torch.relu(x) + x * torch.sigmoid(x)


# The activation, and the word by which a refusal must call it; see with_relu.
UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "SiLU": (nn.SiLU, "SiLU"),
    "SiLU in place": (lambda: nn.SiLU(inplace=True), "SiLU"),
    "GELU": (nn.GELU, "GELU"),
    "GELU tanh": (lambda: nn.GELU(approximate="tanh"), "GELU"),
    "Hardswish": (nn.Hardswish, "Hardswish"),
    "LeakyReLU": (nn.LeakyReLU, "LeakyReLU"),
    "LeakyReLU in place": (lambda: nn.LeakyReLU(inplace=True), "LeakyReLU"),
    "ELU": (nn.ELU, "ELU"),
    "SELU": (nn.SELU, "ELU"),
    "CELU": (nn.CELU, "ELU"),
    "PReLU": (nn.PReLU, "PReLU"),
    "Mish": (nn.Mish, "Mish"),
    "Softplus": (nn.Softplus, "Softplus"),
    "Hardtanh(-1, 1)": (nn.Hardtanh, "Hardtanh"),
    "GLU": (lambda: nn.Sequential(nn.Conv2d(4, 8, 1), nn.GLU(dim=1)), "GLU"),
    "SiLU written out": (lambda: nets.Call(lambda x: x * torch.sigmoid(x)), "SiLU"),
    "SiLU beside a ReLU": (lambda: nets.Call(_half_silu), "SiLU"),
    "hard-swish written out": (lambda: nets.Call(lambda x: x * F.relu6(x + 3.0) / 6.0), "Hardswish"),
    "GELU written out": (lambda: nets.Call(lambda x: 0.5 * x * (1.0 + torch.erf(x / 2**0.5))), "GELU"),
    "GELU by tanh written out": (
        lambda: nets.Call(lambda x: 0.5 * x * (1.0 + torch.tanh(0.79788456 * (x + 0.044715 * x**3)))),
        "GELU",
    ),
    "LeakyReLU by maximum": (lambda: nets.Call(lambda x: torch.maximum(x, 0.1 * x)), "maximum"),
    "ReLU by maximum": (lambda: nets.Call(lambda x: torch.maximum(x, torch.zeros(()))), "ReLU"),
    "ReLU by a tensor bound": (lambda: nets.Call(lambda x: x.clamp(min=torch.zeros(4, 1, 1))), "ReLU"),
    "ReLU by where": (lambda: nets.Call(lambda x: torch.where(x > 0, x, torch.zeros_like(x))), "where"),
    "ReLU by a mask": (lambda: nets.Call(lambda x: x * (x > 0)), "mask"),
    "ReLU by masked_fill": (lambda: nets.Call(lambda x: x.masked_fill(x < 0, 0.0)), "mask"),
    "ReLU by abs": (lambda: nets.Call(lambda x: (x + x.abs()) / 2), "abs"),
    "scripted ReLU": (lambda: torch.jit.script(_WithRelu()), "scripted"),
    "scripted and fused ReLU": (lambda: _warmed_up(torch.jit.script(_Fusible())), "scripted"),
    "custom autograd function": (lambda: nets.Call(_OwnRelu.apply), "custom autograd function"),
}


def with_relu(unruled: nn.Module) -> nn.Module:
    """The activation in question after an innocent ReLU."""
    return nets.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1), unruled)).eval()
