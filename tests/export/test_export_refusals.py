"""Networks that no graph can hold are refused with the reason, and leave no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convlens
from convlens.errors import UnsupportedModelError
from convlens.runtime.graph_contract import Kind
from convlens.runtime.onnx_runtime import OnnxRuntime
from export.exporter import export


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


class Frozen(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.backbone(x)
        return self.head(maps.mean((2, 3)))


class UnderAutocast(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class UnevenMaxPool(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_max_pool2d(self.backbone(x), 5).mean((2, 3)))


class ReturnsItsBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("results", torch.zeros(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.results[: len(x)] = super().forward(x)
        return self.results[: len(x)]


def traced() -> nn.Module:
    return torch.jit.trace(Net().eval(), torch.zeros(1, 3, 8, 8))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Kind, str]] = {
    "traced, scores": (traced, "scores", "is scripted or traced.*export the network that it was made from"),
    "traced, saliency": (traced, "saliency", "is scripted or traced"),
    "traced, maps": (traced, "cam", "scripted or traced"),
    "no gradient": (Frozen, "saliency", "saliency: no gradient reaches the image"),
    "no gradient, guided": (Frozen, "guided_backprop", "guided_backprop: no gradient reaches the image"),
    "autocast": (UnderAutocast, "scores", "computes in bfloat16 inside"),
    "autocast, saliency": (UnderAutocast, "saliency", "computes in bfloat16 inside"),
    "autocast, maps": (UnderAutocast, "cam", "computes in bfloat16 inside"),
    "windows of uneven sizes": (UnevenMaxPool, "scores", "adaptive_max_pool2d"),
    "windows of uneven sizes, saliency": (UnevenMaxPool, "saliency", "adaptive_max_pool2d"),
    "windows of uneven sizes, maps": (UnevenMaxPool, "cam", "adaptive_max_pool2d"),
}


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_graph_can_hold_is_refused_before_a_file_is_written(tmp_path: Path, kind: str) -> None:
    make, graph, reason = REFUSED[kind]
    classifier = convlens.wrap(make(), size=8)
    with pytest.raises(UnsupportedModelError, match=reason):
        export(classifier, graph, tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Frozen, ReturnsItsBuffer])
def test_what_such_a_network_does_without_gradients_is_exported(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    classifier = convlens.wrap(make(), size=8)
    graph = OnnxRuntime(export(classifier, "scores", tmp_path / "graph.onnx").path, providers="cpu")
    x_NCHW = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected_NK = Net().eval()(torch.tensor(x_NCHW)).numpy()
    np.testing.assert_allclose(graph.logits(x_NCHW), expected_NK, atol=1e-6)


def test_after_an_export_the_network_holds_its_own_buffers(tmp_path: Path) -> None:
    classifier = convlens.wrap(ReturnsItsBuffer(), size=8)
    export(classifier, "saliency", tmp_path / "graph.onnx")
    assert {type(buffer) for buffer in classifier.module.buffers()} == {torch.Tensor}
    x = torch.ones(2, 3, 8, 8)
    torch.testing.assert_close(classifier.module(x), Net().eval()(x), atol=1e-6, rtol=0)
