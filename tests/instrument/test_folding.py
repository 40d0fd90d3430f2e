"""Batch norms folded into convolutions: the same scores, found in any spelling, and left alone where they cannot be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from nets import CPU, pictures
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from convlens.explain.sweeps import device
from convlens.explain.sweeps.backends import SweepRequest
from convlens.explain.sweeps.device import DeviceSweep
from convlens.explain.sweeps.windows import Windows
from convlens.instrument import FoldedBatchNorms, WatchedConvolutions
from convlens.types import no_op


def batch_norm(make: Callable[..., nn.Module] = nn.BatchNorm2d, channels: int = 5, **options: object) -> nn.Module:
    """With statistics, and factors if it has any, that are nobody's default."""
    norm = make(channels, **options).eval()
    norm.running_mean.uniform_(-1.0, 1.0)
    norm.running_var.uniform_(0.2, 3.0)
    if norm.weight is not None:
        nn.init.uniform_(norm.weight, -2.0, 2.0)
        nn.init.normal_(norm.bias)
    return norm


class Net(nn.Module):
    """A convolution, and what ``tail`` makes of it and of the batch norm behind it."""

    def __init__(self, tail: Callable[..., Tensor], *, bias: bool = True, norm: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.convolution = nn.Conv2d(3, 5, 3, bias=bias)
        self.norm = norm or batch_norm()
        self.second = nn.Conv2d(5, 5, 3)
        self.second_norm = batch_norm()
        self.tail = tail
        self.double().eval()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.tail(self, self.convolution(x_NCHW)).mean((2, 3))


def plain(net: Net, maps: Tensor) -> Tensor:
    return net.second_norm(net.second(net.norm(maps).relu_()))


def functions(net: Net, maps: Tensor) -> Tensor:
    norm = net.norm
    return functional.batch_norm(
        maps, norm.running_mean, norm.running_var, weight=norm.weight, bias=norm.bias, eps=norm.eps
    )


def shape_between(net: Net, maps: Tensor) -> Tensor:
    assert maps.shape[1] == 5
    assert maps.dim() == 4
    return net.norm(maps)


def read_twice(net: Net, maps: Tensor) -> Tensor:
    return net.norm(maps) + maps


def changed_before(net: Net, maps: Tensor) -> Tensor:
    maps += 1.0
    return net.norm(maps)


def serves_twice(net: Net, maps: Tensor) -> Tensor:
    return net.second(net.second_norm(net.second(net.norm(maps))))


def by_the_batch(net: Net, maps: Tensor) -> Tensor:
    return functional.batch_norm(maps, None, None, training=True)


FOLDED = [
    (plain, 2, {}),
    (plain, 2, {"bias": False}),
    (plain, 2, {"norm": batch_norm(affine=False)}),
    (functions, 1, {}),
    (shape_between, 1, {}),
    (shape_between, 1, {"norm": batch_norm(BatchNormAct2d)}),
]
LEFT_ALONE = [(read_twice, 0), (changed_before, 0), (serves_twice, 1), (by_the_batch, 0)]


def watched(net: nn.Module, x_NCHW: Tensor) -> tuple[WatchedConvolutions, Tensor]:
    watch = WatchedConvolutions()
    with torch.no_grad(), watch:
        return watch, net(x_NCHW)


@pytest.mark.parametrize(("tail", "folds", "options"), [*FOLDED, *((tail, folds, {}) for tail, folds in LEFT_ALONE)])
def test_scores_stay_the_same_whatever_is_folded(tail: Callable[..., Tensor], folds: int, options: dict) -> None:
    net, x_NCHW = Net(tail, **options), pictures(3, 3, 8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    watch, expected = watched(net, x_NCHW)
    assert sum(each.norm is not None for each in watch.convolutions) == folds
    with torch.no_grad(), FoldedBatchNorms(watch.convolutions).mode():
        found = net(x_NCHW)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net(x_NCHW), expected), "nothing of it outlives the with"


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": (1, 5), "stride": (2, 1), "padding": (0, 2)},
        {"kernel_size": 3, "dilation": 2, "groups": 4},
        {"kernel_size": 1, "stride": 2, "bias": False},
    ],
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_in_float32_each_geometry_gives_what_float64_gives(options: dict, channels_last: bool) -> None:
    """In float32 convolutions run on weights in oneDNN's own layout."""
    torch.manual_seed(7)
    net = nn.Sequential(nn.Conv2d(8, 16, **options), batch_norm(channels=16), nn.ReLU()).eval().requires_grad_(False)
    x_NCHW = torch.randn(5, 8, 13, 17)
    expected = net.double()(x_NCHW.double())
    net.float()
    watch, _ = watched(net, x_NCHW[:1])
    folded = FoldedBatchNorms(watch.convolutions)
    for images in (x_NCHW, x_NCHW[:2]):  # the weights' layout is chosen for the first batch
        images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
        with torch.no_grad(), folded.mode():
            found = net(images)
        np.testing.assert_allclose(found, expected[: len(images)], rtol=1e-4, atol=1e-5)


def test_a_folded_batch_norm_is_not_computed() -> None:
    net, x_NCHW = Net(plain), pictures(1, 3, 8, 8)
    watch, _ = watched(net, x_NCHW)
    with torch.no_grad(), torch.profiler.profile() as profile, FoldedBatchNorms(watch.convolutions).mode():
        net(x_NCHW)
    assert not [event.name for event in profile.events() if "batch_norm" in event.name]


def test_the_largest_tensor_is_that_of_the_widest_step() -> None:
    watch, _ = watched(Net(plain), pictures(2, 3, 8, 8))
    assert watch.largest_bytes == 2 * 5 * 6 * 6 * 8  # two images, five channels of 6 × 6, eight bytes a value


# ---- in a sweep

WINDOWS = Windows(12, 12, window=4, stride=2)


def sweep_of(net: nn.Module, x_CHW: Tensor, steps: Callable[[int], None] = no_op) -> np.ndarray:
    return DeviceSweep(net, CPU).scores(SweepRequest(x_CHW, 1, WINDOWS, 0.5, "logit"), steps)


def one_by_one(net: nn.Module, x_CHW: Tensor) -> np.ndarray:
    scores = []
    for top, left in WINDOWS.corners:
        copy_CHW = x_CHW.clone()
        copy_CHW[:, top : top + 4, left : left + 4] = 0.5
        with torch.no_grad():
            scores.append(float(net(copy_CHW[None])[0, 1]))
    return np.array(scores).reshape(WINDOWS.grid)


def test_a_sweep_sees_weights_as_they_are_now() -> None:
    net, x_CHW = Net(plain), pictures(1, 3, 12, 12)[0]
    first = sweep_of(net, x_CHW)
    np.testing.assert_allclose(first, one_by_one(net, x_CHW), rtol=1e-12)
    net.convolution.weight.data.mul_(-1.5)
    net.norm.running_var.mul_(3.0)
    second = sweep_of(net, x_CHW)
    np.testing.assert_allclose(second, one_by_one(net, x_CHW), rtol=1e-12)
    assert np.abs(second - first).max() > 1e-3


class TwoWays(Net):
    """Adds the convolution's own maps where there are several images, which the watched pass of one does not show."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        maps = self.convolution(x_NCHW)
        return (self.norm(maps) + maps if len(x_NCHW) > 1 else self.norm(maps)).mean((2, 3))


def test_a_network_that_goes_another_way_than_watched_is_not_folded() -> None:
    net, x_CHW, expected = TwoWays(plain), pictures(1, 3, 12, 12)[0], []
    for top, left in WINDOWS.corners:
        copies = x_CHW.repeat(2, 1, 1, 1)
        copies[:, :, top : top + 4, left : left + 4] = 0.5
        with torch.no_grad():
            expected.append(float(net(copies)[0, 1]))
    steps: list[int] = []
    np.testing.assert_allclose(sweep_of(net, x_CHW, steps.append).reshape(-1)[:24], expected[:24], rtol=1e-12)
    assert steps == [8, 8, 8, 1], "each batch that counts is reported once, so that a deadline can end it"


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps are captured on the CPU as they are on a GPU: of the second one the operations stay, without Python."""

    class Replay:
        def __init__(self, action: Callable[[], Tensor]) -> None:
            self._traced = make_fx(action)()
            self.output = self._traced().detach().clone()

        def replay(self) -> None:
            with torch.no_grad():
                self.output.copy_(self._traced())

    def capture(action: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        replay = Replay(action)
        return replay, replay.output

    monkeypatch.setattr(device, "capture", capture)
    monkeypatch.setattr(DeviceSweep, "_capturable", lambda self, windows: True)
    monkeypatch.setattr(device, "float32_flags", tuple)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("make", [lambda: Net(plain), lambda: TwoWays(plain)])
def test_a_captured_sweep_sees_other_images_and_weights_as_they_are_at_each_replay(make: Callable[[], Net]) -> None:
    net, images = make(), pictures(5, 3, 12, 12)
    sweep = DeviceSweep(net, CPU)
    for n, x_CHW in enumerate(images):
        found = sweep.scores(SweepRequest(x_CHW, 1, WINDOWS, 0.5, "logit"), no_op)
        expected = sweep_of(net, x_CHW)  # of its own, met for the first time and so not captured
        # Of the batches of 8 the last is a single window, which TwoWays treats otherwise.
        np.testing.assert_allclose(found.reshape(-1)[:24], expected.reshape(-1)[:24], rtol=1e-10)
        if n == 2:
            net.convolution.weight.data.mul_(-1.5)
            net.norm.running_var.mul_(3.0)
    assert len(sweep._captured) == 1


def test_a_batch_is_as_large_as_keeps_every_tensor_below_the_size_that_the_kernel_takes_back() -> None:
    """One image's widest step: 3 channels of 1,100 × 1,100 in float32, 14.5 MB; two of them are below 32 MiB."""

    class Wide(nn.Module):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            return functional.interpolate(x_NCHW, (1100, 1100)).mean((2, 3))

    steps: list[int] = []
    sweep_of(Wide().eval(), pictures(1, 3, 12, 12)[0].float(), steps.append)
    assert max(steps) == 2
    assert sum(steps) == len(WINDOWS)


def test_what_is_folded_has_the_network_s_gradient() -> None:
    """In float32 and channels last, where passes without gradients take packed convolutions."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), batch_norm(), nn.ReLU(), nn.Conv2d(5, 4, 3)).eval()
    x_NCHW = pictures(2, 3, 9, 9).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    with WatchedConvolutions() as watched:
        (expected,) = torch.autograd.grad(net(x_NCHW).square().sum(), x_NCHW)
    with torch.no_grad():
        folded = FoldedBatchNorms(watched.convolutions)
    with folded.mode():
        (gradient,) = torch.autograd.grad(net(x_NCHW).square().sum(), x_NCHW)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": (1, 5), "padding": (0, 2)},
        {"kernel_size": (3, 5), "padding": (0, 2)},
        {"kernel_size": 3, "dilation": 2, "groups": 4},
        {"kernel_size": 3, "padding": 1, "groups": 8},
        {"kernel_size": 3, "padding": 4},  # more than the kernel reaches
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 8},
        {"kernel_size": 1, "stride": 2},
    ],
)
def test_in_float32_each_geometry_has_the_gradient_that_float64_has(options: dict) -> None:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Conv2d(8, 16, **options), batch_norm(channels=16), nn.ReLU6(inplace=True)).eval()
    x_NCHW, weights = torch.randn(5, 8, 13, 17), None
    folded = None
    for images in (x_NCHW, x_NCHW[:2]):  # the weights' layout is chosen for the first batch
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        exact = images.detach().double().requires_grad_()
        out = net.double()(exact)
        weights = torch.linspace(-1, 1, out[0].numel(), dtype=torch.float64).view_as(out[0])
        (expected,) = torch.autograd.grad((out * weights).sum(), exact)
        net.float()
        folded = folded or FoldedBatchNorms(watched(net, images.detach())[0].convolutions)
        with folded.mode():
            (gradient,) = torch.autograd.grad((net(images) * weights).sum(), images)
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()))


def test_weights_get_no_gradient_of_what_is_packed() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), batch_norm(), nn.Conv2d(5, 4, 1)).eval()
    x_NCHW = pictures(2, 3, 9, 9).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    folded = FoldedBatchNorms(watched(net, x_NCHW.detach())[0].convolutions)
    with folded.mode():
        net(x_NCHW).sum().backward()
    assert x_NCHW.grad is not None
    assert all(weight.grad is None for weight in net.parameters())
