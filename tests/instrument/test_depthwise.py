"""Depthwise convolutions on torch's own kernels: their input's gradient, written out, is autograd's."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from convlens.instrument import NativeDepthwise
from convlens.instrument.function_modes import depthwise_input_gradient

KERNELS = ((3, 3), (5, 5), (1, 3), (2, 2))
STRIDES = ((1, 1), (2, 2), (3, 2))
PADDINGS = ((0, 0), (1, 1), (2, 3), (4, 4))  # the last one beyond the kernel's reach: part of it is cut off again
DILATIONS = ((1, 1), (2, 1))
GEOMETRIES = [
    (kernel, stride, padding, dilation, size)
    for kernel, stride, padding, dilation, size in itertools.product(
        KERNELS, STRIDES, PADDINGS, DILATIONS, ((9, 10), (12, 10))
    )
    if size[0] + 2 * padding[0] > dilation[0] * (kernel[0] - 1)
]


def convolve(
    x: Tensor, weight: Tensor, _: object, bias: Tensor | None, stride: object, padding: object, dilation: object
):
    """As ``aten::_conv_depthwise2d``, which is for CUDA alone."""
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "size"), GEOMETRIES)
def test_the_gradient_is_autograds(kernel, stride, padding, dilation, size) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(4, 1, *kernel, dtype=torch.float64, generator=generator)
    y = functional.conv2d(x, weight, None, stride, padding, dilation, groups=4)
    grad = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    (wanted,) = torch.autograd.grad(y, x, grad)
    found = depthwise_input_gradient(grad, weight, size, stride, padding, dilation, convolve=convolve)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_on_a_cpu_nothing_changes() -> None:
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 3, 3)
    with NativeDepthwise():
        found = functional.conv2d(x, weight, groups=4)
    assert torch.equal(found, functional.conv2d(x, weight, groups=4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_values_and_gradients_are_those_of_a_cpu() -> None:
    x = torch.randn(3, 8, 15, 14, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(8, 1, 3, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    wanted = functional.conv2d(x, weight, bias, 2, 1, groups=8)
    (wanted_grad,) = torch.autograd.grad(wanted.sin().sum(), x)
    on_gpu = x.detach().cuda().to(memory_format=torch.channels_last).requires_grad_()
    with NativeDepthwise():
        found = functional.conv2d(on_gpu, weight.cuda(), bias.cuda(), 2, 1, groups=8)
    (grad,) = torch.autograd.grad(found.sin().sum(), on_gpu)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad.cpu(), wanted_grad, rtol=1e-12, atol=1e-12)
