"""Small random movements of a picture before each step: what survives them is a form, not a pattern of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RandomTransform:
    """How far pictures are moved at random: ``jitter`` pixels either way, enlarged by 1 ± ``scale``, ``rotate``
    degrees either way; all uniform, a row its own.
    """

    jitter: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0

    @property
    def any(self) -> bool:
        return bool(self.jitter or self.scale or self.rotate)


def sample_transforms(
    movements: RandomTransform, count: int, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Affine maps (N, 2, 3) from places in the moved picture to places in the picture, for ``affine_grid``."""
    uniform = torch.rand(count, 4, generator=generator) * 2 - 1
    angle = uniform[:, 0] * math.radians(movements.rotate)
    zoom = 1 + uniform[:, 1] * movements.scale
    height, width = size
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    across, down = (2 * movements.jitter * uniform[:, n] / length for n, length in ((2, width), (3, height)))
    # affine_grid counts in half heights and half widths: a rotation must be told their ratio.
    rows = [torch.stack([cos, -sin * height / width, across], 1), torch.stack([sin * width / height, cos, down], 1)]
    return torch.stack(rows, 1)


def apply_transforms(x_NCHW: Tensor, maps_N23: Tensor) -> Tensor:
    """The pictures seen through the maps, bilinearly; what comes in from beyond the border is 0, the mean grey."""
    grid = functional.affine_grid(maps_N23.to(x_NCHW), list(x_NCHW.shape), align_corners=False)
    return functional.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
