"""Receptive fields against the extent of gradients, in copies of networks in which nothing can cancel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlens import load
from convlens.inspection import Box, ReceptiveField, receptive_fields
from convlens.models import Classifier

NETWORKS = (
    "packaged:efficientnet_lite0",
    *(
        f"torchvision:{name}:untrained"
        for name in ("alexnet", "vgg16", "resnet18", "resnet50", "densenet121", "googlenet", "squeezenet1_0")
    ),
    "torchvision:mobilenet_v2:untrained",
)
WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


# ---- the oracle: positive equal weights, max pooling by mean pooling, float64, no biases, no normalisation


def evened(module: nn.Module, *, narrow: bool = True) -> nn.Module:
    """A copy whose gradients are positive wherever a unit can see.

    Equal weights make all channels equal, so that one of them is enough: ``narrow`` convolutions average their input's
    channels and give one. That saves all but a thousandth of the work.
    """
    even = copy.deepcopy(module).double().eval()
    for parent in list(even.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _even(child, narrow))
    return even


def _even(layer: nn.Module, narrow: bool) -> nn.Module:
    if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.ReLU | nn.ReLU6):
        return nn.Identity()
    if isinstance(layer, nn.MaxPool2d):
        assert layer.dilation == 1
        return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
    if isinstance(layer, nn.Conv2d | nn.Linear):
        _level(layer, narrow)
    return layer


def _level(layer: nn.Conv2d | nn.Linear, narrow: bool) -> None:
    layer.bias = None
    weight = layer.weight
    if narrow:
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        layer.register_forward_pre_hook(lambda _, given: (given[0].mean(axis, keepdim=True), *given[1:]))
        weight = weight[:1, :1]
        if isinstance(layer, nn.Conv2d):
            layer.groups = 1
    layer.weight = nn.Parameter(torch.full_like(weight, 1 / weight[0].numel()), requires_grad=False)


def caught(even: nn.Module, layers: list[str], x: Tensor) -> dict[str, Tensor]:
    """The layers' outputs, with the way back to ``x``."""
    outputs: dict[str, Tensor] = {}
    for name in layers:
        layer = even.get_submodule(name)
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out * 1.0}))
    even(x)
    return outputs


def extent(output: Tensor, y: int, x: int, picture: Tensor) -> Box:
    """Top, left, bottom, right of the pixels with a gradient from that unit, all channels together."""
    (gradient,) = torch.autograd.grad(output[0, :, y, x].sum(), picture, retain_graph=True)
    rows, columns = (gradient != 0).any(0).any(0).nonzero(as_tuple=True)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def blank(classifier: Classifier, size: int | None = None) -> Tensor:
    side = size or classifier.spec.crop
    return torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)


def windowed(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, WINDOWED)]


def units(field: ReceptiveField) -> Iterator[tuple[int, int]]:
    """Both borders and the centre."""
    rows, columns = field.grid
    yield from ((0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1), (0, columns - 1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_fields_are_the_extent_of_the_gradient_in_every_convolution_and_pooling_layer(name: str) -> None:
    classifier = load(name, device="cpu")
    fields = receptive_fields(classifier)
    picture, layers = blank(classifier), windowed(classifier.module)
    outputs = caught(evened(classifier.module), layers, picture)
    assert len(layers) >= 9
    for layer in layers:
        for unit in units(fields[layer]):
            assert fields[layer].clipped(*unit) == extent(outputs[layer], *unit, picture), (layer, unit)


def test_the_narrow_copies_see_what_wide_ones_see() -> None:
    module = load("torchvision:squeezenet1_0:untrained", device="cpu").module
    layers = ["features.0", "features.4.expand3x3", "features.6", "features.12.expand1x1"]
    picture = torch.ones(1, 3, 224, 224, dtype=torch.float64, requires_grad=True)
    wide, narrow = (caught(evened(module, narrow=narrow), layers, picture) for narrow in (False, True))
    for layer in layers:
        assert wide[layer].shape[1] > narrow[layer].shape[1]
        assert extent(wide[layer], 3, 5, picture) == extent(narrow[layer], 3, 5, picture)


def test_boxes_are_fields_in_an_image_without_a_border() -> None:
    """A large picture's unit far from the border: the size of its field, and the place by start and stride."""
    classifier = load("torchvision:resnet18:untrained", device="cpu")
    fields = receptive_fields(classifier)
    picture, layers = blank(classifier, 896), windowed(classifier.module)[:-1]
    outputs = caught(evened(classifier.module), layers, picture)
    for layer in layers:
        field, (y, x) = fields[layer], (side // 2 for side in outputs[layer].shape[2:])
        top, left, bottom, right = extent(outputs[layer], y, x, picture)
        assert field.uniform
        assert field.stride is not None
        assert (bottom - top, right - left) == field.size
        assert (top - y * field.stride[0], left - x * field.stride[1]) == field.start


def test_vgg16_is_as_published() -> None:
    """Araujo, Norris & Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019."""
    field = receptive_fields(load("torchvision:vgg16:untrained", device="cpu"))["features.30"]
    assert (field.grid, field.size, field.stride, field.start) == ((7, 7), (212, 212), (32, 32), (-90, -90))
    assert field.box(0, 6) == (-90, 102, 122, 314)
    assert field.clipped(0, 6) == (0, 102, 122, 224)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("packaged:efficientnet_lite0", "blocks.3.1.conv_dw"),
        ("torchvision:squeezenet1_0:untrained", "features.10.expand3x3"),
        ("torchvision:googlenet:untrained", "inception4a"),
        ("torchvision:shufflenet_v2_x0_5:untrained", "stage3.1"),
    ],
)
def test_what_lies_outside_a_crop_does_not_matter(name: str, layer: str) -> None:
    classifier = load(name, device="cpu")
    module = nets.perturbed(classifier.module)
    field = receptive_fields(classifier)[layer]
    side = classifier.spec.crop
    x = nets.pictures(1, 3, side, side)
    kept: list[Tensor] = []
    module.get_submodule(layer).register_forward_hook(lambda *given: kept.append(given[2].clone()))
    with torch.no_grad():
        module(x)
        for y, column in units(field):
            top, left, bottom, right = field.clipped(y, column)
            changed = nets.pictures(1, 3, side, side, seed=1) * 10
            changed[..., top:bottom, left:right] = x[..., top:bottom, left:right]
            module(changed)
            before, after = kept[0][0, :, y, column], kept[-1][0, :, y, column]
            assert not torch.equal(kept[0], kept[-1])
            torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_a_layer_without_a_map_has_the_image_as_its_box_also_where_its_input_reached_beyond() -> None:
    fields = receptive_fields(load("torchvision:alexnet:untrained", device="cpu"))
    assert fields["avgpool"].box(0, 0) == (-66, -66, 129, 129)
    for layer in ("classifier.0", "classifier.6"):  # flattened, fully connected
        assert fields[layer].grid == (1, 1)
        assert fields[layer].box(0, 0) == fields[layer].clipped(0, 0) == (0, 0, 224, 224)


def test_where_channels_come_last_rows_and_columns_are_still_told_apart_from_them() -> None:
    fields = receptive_fields(load("torchvision:convnext_tiny:untrained", device="cpu"))
    convolution, *others = (fields[f"features.1.0.block.{n}"] for n in (0, 2, 3, 4, 5))
    for field in others:
        np.testing.assert_array_equal(field.reach_4YX, convolution.reach_4YX)
        np.testing.assert_array_equal(field.seen_4YX, convolution.seen_4YX)


# ---- one difficulty each


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.avg_pool2d(x, 3, 1, 1), F.avg_pool2d(x, (1, 5), 1, (0, 2)), x], 1)


class OneHalf(nn.Module):
    """Keeps the narrow half of a concatenation, by a channel shuffle and a chunk."""

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([x, F.avg_pool2d(x, 7, 1, 3)], 2).flatten(1, 2)
        shuffled = both.view(len(x), -1, 2, *x.shape[2:]).transpose(1, 2).reshape(both.shape)
        return shuffled.chunk(2, 1)[0]


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Overwriting(nn.Module):
    """A view written through: the base has the wider fields afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x[:, :1] += F.avg_pool2d(x, 5, 1, 2)[:, :1]
        return x[:, :1]


class Blanked(nn.Module):
    """Some rows are overwritten and forget what was there."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x[:, :, 3:5] = 0
        x[:, :, :1] = torch.ones(2, 3, 1, 12)[:1]
        return x


STEPS: dict[str, Callable[[], nn.Module]] = {
    "dilation": lambda: nn.Conv2d(3, 3, 3, padding=2, dilation=2),
    "a stride that leaves pixels over": lambda: nn.Conv2d(3, 3, 3, stride=3, padding=1),
    "a kernel that is not square": lambda: nn.Conv2d(3, 3, (1, 5), stride=(2, 1), padding=(0, 2)),
    "ceil_mode": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    "grouped": lambda: nn.Conv2d(3, 3, 5, padding=2, groups=3),
    "padding on one side": lambda: nn.ZeroPad2d((2, 0, 0, 1)),
    "a crop": lambda: nn.ZeroPad2d(-2),
    "mirrored padding": lambda: nn.ReflectionPad2d((3, 1, 2, 0)),
    "repeated padding": lambda: nn.ReplicationPad2d(2),
    "adaptive pooling by bins that overlap": lambda: nn.AdaptiveAvgPool2d((5, 4)),
    "adaptive pooling of one axis": lambda: nn.AdaptiveAvgPool2d((1, 6)),
    "enlarging": lambda: nn.Upsample(scale_factor=2),
    "branches": Branches,
    "half of the channels": OneHalf,
    "a gate from the whole picture": Gate,
    "in place through a view": Overwriting,
    "pixels to channels": lambda: nn.PixelUnshuffle(2),
    "statistics of groups": lambda: nn.GroupNorm(1, 3),
    "statistics of pictures": lambda: nn.InstanceNorm2d(3),
    "statistics of channels": lambda: nets.Call(lambda x: F.layer_norm(x.movedim(1, 3), (3,)).movedim(3, 1)),
    "means of unlike branches": lambda: nets.Call(
        lambda x: torch.cat([x.mean((2, 3), keepdim=True), x[:, :, 2:].mean((2, 3), keepdim=True)], 1)
    ),
    "statistics of unlike groups": lambda: nets.Call(
        lambda x: F.group_norm(torch.cat([x, F.pad(x[:, :, 3:], (0, 0, 3, 0))], 1), 2)
    ),
    "rows' means of unlike branches": lambda: nets.Call(
        lambda x: torch.cat([x.mean(3, keepdim=True), x[..., 2:].mean(3, keepdim=True)], 1)
    ),
    "pooling by its own size": lambda: nets.Call(lambda x: F.avg_pool2d(x, 3)),
    "max pooling with dilation and ceil_mode": lambda: nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True),
    "constants put before": lambda: nets.Call(lambda x: torch.cat([torch.ones_like(x[:, :, :2]), x], 2)),
    "constants written over": Blanked,
    "slices": lambda: nets.Call(lambda x: x[:, :, 1:, :-2]),
    "turned over": lambda: nets.Call(lambda x: x.flip(3)),
}


class Around(nn.Module):
    """The step between two padded convolutions with strides: what it does at the borders, the second one sees."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, stride=2, padding=1)
        self.step = step
        self.last = nn.LazyConv2d(2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x)))


def by_changing_pixels(module: nn.Module, shape: tuple[int, int], layer: str) -> dict[tuple[int, int], Box]:
    """Each unit's rectangle found by changing one pixel after another: no gradient, no positive weights needed.

    Far up and far down, so that one of them gets past every maximum.
    """
    kept: list[Tensor] = []
    watched = copy.deepcopy(module)
    watched.get_submodule(layer).register_forward_hook(lambda *given: kept.append(given[2].clone()))
    x = nets.pictures(1, 3, *shape)
    change = torch.zeros(shape[0] * shape[1], 3, *shape, dtype=x.dtype)
    for n, (y, column) in enumerate(np.ndindex(shape)):
        change[n, :, y, column] = torch.tensor([100.0, -200.0, 300.0])
    with torch.no_grad():
        for picture in (x, x + change, x - change):
            watched(picture)
    touched = [((changed - kept[0]).abs() > 1e-12).any(1) for changed in kept[1:]]
    return _boxes(torch.logical_or(*touched).numpy().reshape(*shape, *kept[0].shape[2:]))


def _boxes(touched_HWYX: np.ndarray) -> dict[tuple[int, int], Box]:
    boxes = {}
    for unit in np.ndindex(touched_HWYX.shape[2:]):
        rows, columns = np.nonzero(touched_HWYX[:, :, *unit])
        sides = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) if len(rows) else (0, 0, 0, 0)
        boxes[unit] = sides
    return boxes


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layer", ["step", "last"])
def test_every_unit_sees_the_pixels_that_change_it(step: str, layer: str) -> None:
    shape = (24, 23)  # 12 × 12 units behind the first convolution
    module = nets.seeded(lambda: Around(STEPS[step]()))
    with torch.no_grad():
        module(nets.pictures(1, 3, *shape))  # gives the last layer its channels
    float32 = nets.classifier(copy.deepcopy(module).float(), classes=2)
    field = receptive_fields(float32, shape)[layer]
    expected = by_changing_pixels(module, shape, layer)
    assert field.grid == tuple(side + 1 for side in max(expected))
    assert {unit: field.clipped(*unit) for unit in expected} == expected
