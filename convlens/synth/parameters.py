"""Parameterization of images: by their pixels, or by Fourier coefficients (Olah et al. 2017, Feature Visualization).

Either gives normalised images, as the network takes them; 0 is the mean grey.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.synth.images import black_and_white
from convlens.types import ModelSpec

Kind = Literal["fourier", "pixels"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_EDGE = 1e-3  # a sigmoid reaches neither black nor white

# Square root of the covariance of the three colours over ImageNet's pixels, its largest column scaled to 1 as Lucid
# does (github.com/tensorflow/lucid, optvis/param/color.py). Without it, images come out in garish colours.
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


class Parameterization(ABC):
    """``values`` is a leaf tensor that may be changed in place; ``images`` are computed from it, differentiably."""

    values: Tensor

    def images(self, rows: slice = slice(None)) -> Tensor:
        """Normalised images (N, C, H, W) of these rows."""
        return self.to_images(self.values[rows])

    @abstractmethod
    def to_images(self, values: Tensor) -> Tensor:
        """The images that ``values`` stand for."""

    @abstractmethod
    def set_images(self, x_NCHW: Tensor) -> None:
        """Start from normalised images, as near as the parameterization can come to them."""


class Pixels(Parameterization):
    """The normalised pixels themselves; ``clip`` keeps them, after each step, between black and white."""

    def __init__(self, count: int, size: tuple[int, int], spec: ModelSpec, device: torch.device) -> None:
        channels = len(spec.mean)
        self.values = torch.zeros(count, channels, *size, device=device, requires_grad=True)
        self._black_C11, self._white_C11 = black_and_white(spec, device)

    def to_images(self, values: Tensor) -> Tensor:
        return values

    def set_images(self, x_NCHW: Tensor) -> None:
        with torch.no_grad():
            self.values.copy_(x_NCHW)

    def clip(self) -> None:
        with torch.no_grad():
            torch.clamp(self.values, self._black_C11, self._white_C11, out=self.values)


class Fourier(Parameterization):
    """Fourier coefficients of decorrelated colours; a sigmoid keeps pixels between black and white.

    Only red, green and blue are decorrelated: other channels are each by itself. ``values`` (N, C, H, W // 2 + 1, 2)
    hold real and imaginary parts. Each is divided by its frequency to the power ``smoothness``: 1 lets all scales move
    alike, more favours coarse ones.
    """

    def __init__(
        self,
        count: int,
        size: tuple[int, int],
        spec: ModelSpec,
        device: torch.device,
        *,
        decorrelated: bool = True,
        smoothness: float = 1.0,
    ) -> None:
        height, width = size
        self._size = size
        self.values = torch.zeros(count, spec.channels, height, width // 2 + 1, 2, device=device, requires_grad=True)
        frequency = (
            torch.fft.fftfreq(height, device=device)[:, None] ** 2 + torch.fft.rfftfreq(width, device=device) ** 2
        )
        inverse = 1 / frequency.sqrt().clamp_min(1 / max(height, width))
        scale = inverse**smoothness
        # The contrast of smoothness 1 whatever the smoothness; the quarter is Lucid's.
        scale = scale * (inverse.norm() / scale.norm()) * (height * width) ** 0.5 / 4
        self._scale_HW1 = scale[..., None]
        colours = torch.tensor(_COLOURS, device=device)
        colours = colours / colours.norm(dim=0).max()
        rgb = decorrelated and spec.channels == 3
        self._colours = colours if rgb else torch.eye(spec.channels, device=device)
        self._mean, self._std = (torch.tensor(part, device=device)[:, None, None] for part in (spec.mean, spec.std))

    def to_images(self, values: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(values * self._scale_HW1)
        decorrelated_NCHW = torch.fft.irfft2(spectrum, s=self._size)
        # A product of matrices, because einsum took four times as long.
        rgb = torch.matmul(self._colours, decorrelated_NCHW.flatten(2)).view_as(decorrelated_NCHW)
        return (rgb.sigmoid() - self._mean) / self._std

    def set_images(self, x_NCHW: Tensor) -> None:
        with torch.no_grad():
            rgb = (x_NCHW * self._std + self._mean).clamp(_EDGE, 1 - _EDGE)
            decorrelated = torch.linalg.solve(self._colours, rgb.logit().flatten(2)).view_as(rgb)
            self.values.copy_(torch.view_as_real(torch.fft.rfft2(decorrelated)) / self._scale_HW1)


def make_parameterization(
    kind: str,
    count: int,
    size: tuple[int, int],
    spec: ModelSpec,
    device: torch.device,
    *,
    decorrelated: bool,
    smoothness: float = 1.0,
) -> Parameterization:
    """Of ``count`` grey images of ``size`` (height, width).

    RequestError for an unknown kind.
    """
    if kind == "pixels":
        return Pixels(count, size, spec, device)
    if kind != "fourier":
        raise RequestError(f"no parameterisation {kind!r}; there are: {', '.join(KINDS)}", field="parameter")
    return Fourier(count, size, spec, device, decorrelated=decorrelated, smoothness=smoothness)


def noise(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal, the same on every device: CUDA's own generator gives other numbers for a seed."""
    return torch.randn(*shape, generator=generator).to(device)
