"""Every layer that has a backward step of its own, as a graph, against autograd in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import reference_gradients
import torch
from gradient_graphs import close, graph_of, small, steps_of
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.runtime.onnx_runtime import OnnxRuntime


def conv(*args: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*args, **options)


LAYERS: dict[str, nn.Module] = {
    "convolution": conv(4, 6, 3, padding=1),
    "without padding": conv(4, 6, 3),
    "more padding than reach": conv(4, 6, 3, padding=4),
    "oblong": conv(4, 6, (1, 5), padding=(0, 2)),
    "dilated": conv(4, 6, 3, dilation=2, padding=2),
    "grouped": conv(4, 6, 3, groups=2, padding=1),
    "depthwise": conv(4, 4, 3, groups=4, padding=1),
    "depthwise with a multiplier": conv(4, 8, 3, groups=4, padding=1),
    "strided": conv(4, 6, 3, stride=2, padding=1),
    "strided, even window": conv(4, 6, 4, stride=2, padding=1),
    "strided, odd remainder": conv(4, 6, 5, stride=3, padding=1),
    "stride 4 under 11": conv(4, 6, 11, stride=4, padding=2),
    "strided, padding above stride": conv(4, 6, 7, stride=2, padding=3),
    "stride wider than the window": conv(4, 6, 2, stride=3),
    "strided, grouped": conv(4, 6, 3, stride=2, padding=1, groups=2),
    "strided, depthwise": conv(4, 4, 3, stride=2, padding=1, groups=4),
    "strided, dilated": conv(4, 6, 3, stride=2, dilation=2, padding=2),
    "uneven strides": conv(4, 6, 3, stride=(2, 1), padding=1),
    "pointwise, strided": conv(4, 6, 1, stride=2),
    "pointwise, strided, padded": conv(4, 6, 1, stride=3, padding=1),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "batch norm": nn.BatchNorm2d(4),
    "batch norm without weights": nn.BatchNorm2d(4, affine=False),
    "max pool": nn.MaxPool2d(2),
    "max pool, overlapping": nn.MaxPool2d(3, 2, padding=1),
    "max pool, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max pool, stride 1": nn.MaxPool2d(3, 1, padding=1),
    "max pool, dilated": nn.MaxPool2d(2, 2, dilation=2),
    "average pool": nn.AvgPool2d(2),
    "average pool, padded": nn.AvgPool2d(3, 2, padding=1),
    "average pool, padding not counted": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average pool, ceil": nn.AvgPool2d(3, 2, ceil_mode=True),
    "average pool, ceil and padded": nn.AvgPool2d((3, 2), 2, padding=1, ceil_mode=True),
    "average pool, divisor": nn.AvgPool2d(3, 1, divisor_override=2),
    "adaptive pool to the same size": nn.AdaptiveAvgPool2d(11),
    "adaptive pool, uneven": nn.AdaptiveAvgPool2d((4, 3)),
    "adaptive pool, larger": nn.AdaptiveAvgPool2d(16),
    "skip": nets.PreActivation(4),
    "squeeze and excite": nets.SqueezeExcite(4),
    "concatenation": nets.Call(lambda x: torch.cat([x, F.relu(x), x[:, 1:3]], dim=1)),
    "sigmoid": nn.Sigmoid(),
    "SiLU": nn.SiLU(),
    "Hardswish": nn.Hardswish(),
    "GELU": nn.GELU(),
    "Softplus": nn.Softplus(),
    "PReLU": nn.PReLU(4),
    "ELU": nn.ELU(),
    "LeakyReLU": nn.LeakyReLU(),
    "Tanh": nn.Tanh(),
    "instance norm": nn.InstanceNorm2d(4),
    "instance norm with weights": nn.InstanceNorm2d(4, affine=True),
    "instance norm with running statistics": nn.InstanceNorm2d(4, track_running_stats=True),
    "group norm": nn.GroupNorm(2, 4),
    "layer norm": nn.LayerNorm([4, 11, 11]),
    "layer norm over channels": nets.Call(lambda x: over_channels(x)),
    "local response norm": nn.LocalResponseNorm(3, alpha=1.0),
    "local response norm, even": nn.LocalResponseNorm(2, alpha=1.0),
    "pixel shuffle": nn.PixelShuffle(2),
    "pixel unshuffle": nets.Call(lambda x: F.pixel_unshuffle(x[:, :, 1:, 1:], 2)),
    "channel shuffle": nn.ChannelShuffle(2),
    "nearest, larger": nn.Upsample(scale_factor=2),
    "bilinear, larger": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear, corners aligned": nn.Upsample(size=(7, 9), mode="bilinear", align_corners=True),
    "area": nets.Call(lambda x: F.interpolate(x, size=(4, 3), mode="area")),
    "adaptive max pool to one": nn.AdaptiveMaxPool2d(1),
    "adaptive max pool of equal windows": nets.Call(lambda x: F.adaptive_max_pool2d(x[:, :, 1:, 1:], (5, 2))),
    "global mean of a map that is channels last": nets.Call(lambda x: F.adaptive_avg_pool2d(over_channels(x), 1)),
    "reflection padding": nn.ReflectionPad2d(2),
    "replication padding": nn.ReplicationPad2d((2, 1, 0, 3)),
    "cropped by padding": nn.ReplicationPad2d((-2, 1, 1, -1)),
}


def over_channels(x_NCHW: Tensor) -> Tensor:
    """A layer norm of each pixel, as in ConvNeXt."""
    return F.layer_norm(x_NCHW.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)


# Their forward pass already comes out otherwise in ONNX: torch's exporter drops the divisor, and ONNX Runtime counts
# windows that begin in the padding.
NOT_IN_ONNX = {"average pool, divisor", "average pool, ceil and padded"}
# Made of operators that are in the graph already, or of many small ones of torch's own making.
NOT_AGAIN = {
    "ELU",
    "LeakyReLU",
    "Tanh",
    "local response norm, even",
    "pixel unshuffle",
    "channel shuffle",
    "nearest, larger",
    "bilinear, larger",
    "bilinear, corners aligned",
    "area",
    "reflection padding",
    "cropped by padding",
}


class Branches(nn.Module):
    """All layers beside each other on the same picture, each on the way to logits of its own weighting."""

    def __init__(self) -> None:
        super().__init__()
        left_out = NOT_IN_ONNX | NOT_AGAIN
        self.layers = nn.ModuleList(copy.deepcopy(part) for name, part in LAYERS.items() if name not in left_out)
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Linear(len(self.layers), 3)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.first(x_NCHW)
        return self.head(torch.stack([spread(layer(x)) for layer in self.layers], dim=1))


def spread(x: Tensor) -> Tensor:
    """A different weight for each value, so that no two may be exchanged."""
    return (x.flatten(1) * torch.linspace(0.5, 1.5, x[0].numel(), dtype=x.dtype)).mean(1)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layers_backward_step_is_autograds(layer: str) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = copy.deepcopy(LAYERS[layer])
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return spread(self.layer(x_NCHW))[:, None] * self.weight

    module = nets.seeded(One)
    # whole numbers, so that windows of a pool hold their maximum more than once
    x_NCHW = (nets.pictures(3, 4, 11, 11) * 2).round()
    found_NCHW, _ = steps_of(module, "saliency", x_NCHW)(x_NCHW, torch.tensor([1, 0, 1]))
    close(found_NCHW, reference_gradients.plain_gradient(module, x_NCHW, [1, 0, 1]), 1e-6)


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, OnnxRuntime]:
    module = nets.seeded(Branches)
    net = small(copy.deepcopy(module), crop=11)
    return module, graph_of(net, "saliency", tmp_path_factory.mktemp("branches"))


@pytest.mark.parametrize("count", [1, 5])
def test_onnx_runtime_computes_every_such_step(branches: tuple[nn.Module, OnnxRuntime], count: int) -> None:
    module, graph = branches
    x_NCHW, target_N = nets.pictures(count, 3, 11, 11, seed=1), [n % 3 for n in range(count)]
    found = graph.run(x_NCHW.float(), np.array(target_N))
    close(found["gradient_NCHW"], reference_gradients.plain_gradient(module, x_NCHW, target_N))


def test_a_maximum_found_more_than_once_passes_its_gradient_to_the_first(tmp_path: Path) -> None:
    net = small(nets.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True)), crop=8)
    net.module.first.weight.data.zero_()  # every value is the bias: all are maxima
    net.module.first.bias.data.fill_(1.0)
    net.module.first.weight.data[:, :, 1, 1] = 1e-30  # lost in the sum, but not in the gradient
    graph = graph_of(net, "saliency", tmp_path)
    found_NCHW, _ = graph.gradient(np.ones((1, 3, 8, 8), np.float32), np.array([1]))
    rows, columns = np.nonzero(found_NCHW[0, 0])
    assert sorted(set(zip(rows.tolist(), columns.tolist(), strict=True))) == [
        (r, c) for r in (0, 2, 4, 6) for c in (0, 2, 4, 6)
    ]
