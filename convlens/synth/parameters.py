"""What ascent works on: the pixels themselves, or their Fourier coefficients (Olah et al. 2017, Feature Visualization).

Either gives pictures as the network takes them, normalised, and of 0 where they are the mean grey.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.types import ModelSpec

Kind = Literal["fourier", "pixels"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_EDGE = 1e-3  # a sigmoid reaches neither black nor white

# Square root of the covariance of the three colours over ImageNet's pixels, its largest column scaled to 1 as Lucid
# does (github.com/tensorflow/lucid, optvis/param/color.py). Without it, pictures come out in garish colours.
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


class Parameterization(ABC):
    """``values`` is a leaf that may be changed in place; ``pictures`` are made from it, differentiably."""

    values: Tensor

    def images(self, rows: slice = slice(None)) -> Tensor:
        """Normalised pictures (N, 3, H, W) of these rows."""
        return self.to_images(self.values[rows])

    @abstractmethod
    def to_images(self, values: Tensor) -> Tensor:
        """The pictures that such values stand for."""

    @abstractmethod
    def set_images(self, x_NCHW: Tensor) -> None:
        """Start from normalised pictures, as near as the parameter can come."""


class Pixels(Parameterization):
    """The pictures in units of pixel / 255 over the normalisation's spread: those that the network takes.

    ``clip`` keeps them, after each step, within what a picture can hold.
    """

    def __init__(self, count: int, size: tuple[int, int], spec: ModelSpec, device: torch.device) -> None:
        channels = len(spec.mean)
        self.values = torch.zeros(count, channels, *size, device=device, requires_grad=True)
        mean_C11, std_C11 = (torch.tensor(each, device=device)[:, None, None] for each in (spec.mean, spec.std))
        self.low_C11, self.high_C11 = -mean_C11 / std_C11, (1 - mean_C11) / std_C11

    def to_images(self, values: Tensor) -> Tensor:
        return values

    def set_images(self, x_NCHW: Tensor) -> None:
        with torch.no_grad():
            self.values.copy_(x_NCHW)

    def clip(self) -> None:
        with torch.no_grad():
            torch.maximum(torch.minimum(self.values, self.high_C11, out=self.values), self.low_C11, out=self.values)


class Fourier(Parameterization):
    """Fourier coefficients, each divided by its frequency so that all scales move alike, of colours that are
    uncorrelated; a sigmoid keeps pixels between black and white.

    ``values`` (N, 3, H, W // 2 + 1, 2) hold real and imaginary parts.
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
        self.values = torch.zeros(count, 3, height, width // 2 + 1, 2, device=device, requires_grad=True)
        frequency = (
            torch.fft.fftfreq(height, device=device)[:, None] ** 2 + torch.fft.rfftfreq(width, device=device) ** 2
        )
        inverse = 1 / frequency.sqrt().clamp_min(1 / max(height, width))
        scale = inverse**smoothness
        # As bright as of power 1, and a quarter of that, which is Lucid's.
        scale = scale * (inverse.norm() / scale.norm()) * (height * width) ** 0.5 / 4
        self._scale_HW1 = scale[..., None]
        colours = torch.tensor(_COLOURS, device=device)
        colours = colours / colours.norm(dim=0).max()
        self._colours = colours if decorrelated else torch.eye(3, device=device)
        self._mean, self._std = (torch.tensor(each, device=device)[:, None, None] for each in (spec.mean, spec.std))

    def to_images(self, values: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(values * self._scale_HW1)
        plain_NCHW = torch.fft.irfft2(spectrum, s=self._size)
        count, channels, height, width = plain_NCHW.shape
        # As a product of matrices: einsum took four times as long.
        coloured = torch.matmul(self._colours, plain_NCHW.reshape(count, channels, -1)).view(count, 3, height, width)
        return (coloured.sigmoid() - self._mean) / self._std

    def set_images(self, x_NCHW: Tensor) -> None:
        with torch.no_grad():
            rgb = (x_NCHW * self._std + self._mean).clamp(_EDGE, 1 - _EDGE)
            plain = torch.linalg.solve(self._colours, rgb.logit().flatten(2)).view_as(rgb)
            self.values.copy_(torch.view_as_real(torch.fft.rfft2(plain)) / self._scale_HW1)


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
    """RequestError for a kind that there is not, and for the Fourier one of pictures that are not RGB."""
    if kind == "pixels":
        return Pixels(count, size, spec, device)
    if kind != "fourier":
        raise RequestError(f"no parameterisation {kind!r}; there are: {', '.join(KINDS)}", field="parameter")
    if len(spec.mean) != 3:
        raise RequestError(f"{spec.name} takes {len(spec.mean)} channels; use parameter=pixels", field="parameter")
    return Fourier(count, size, spec, device, decorrelated=decorrelated, smoothness=smoothness)


def noise(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal, the same on every device."""
    return torch.randn(*shape, generator=generator).to(device)
