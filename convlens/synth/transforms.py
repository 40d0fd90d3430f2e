"""Random transforms of an image before each step: jitter, scaling and rotation (Olah et al. 2017; Lucid's transforms).

What still excites the network after them is a shape rather than a pattern of single pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RandomTransform:
    """Ranges: ``jitter`` pixels either way, enlarged by 1 ± ``scale``, ``rotate`` degrees either way; all uniform."""

    jitter: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0

    @property
    def any(self) -> bool:
        return bool(self.jitter or self.scale or self.rotate)


def sample_transforms(ranges: RandomTransform, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Affine maps (N, 2, 3), one a row, from places in the transformed image to places in the image.

    For ``affine_grid``. ``size`` is the images' (height, width).
    """
    uniform = torch.rand(count, 4, generator=generator) * 2 - 1
    angle = uniform[:, 0] * math.radians(ranges.rotate)
    zoom = 1 + uniform[:, 1] * ranges.scale
    height, width = size
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    across, down = (2 * ranges.jitter * uniform[:, n] / length for n, length in ((2, width), (3, height)))
    # affine_grid measures in half heights and half widths, so without their ratio a rotation would shear.
    rows = [torch.stack([cos, -sin * height / width, across], 1), torch.stack([sin * width / height, cos, down], 1)]
    return torch.stack(rows, 1)


def apply_transforms(x_NCHW: Tensor, maps_N23: Tensor) -> Tensor:
    """The images seen through the maps, bilinearly; what comes in from beyond the border is 0, the mean grey."""
    grid = functional.affine_grid(maps_N23.to(x_NCHW), list(x_NCHW.shape), align_corners=False)
    return functional.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def sample_jitter(reach: int, generator: torch.Generator) -> tuple[int, int]:
    """Whole pixels down and across, each uniform from -reach to reach: DeepDream's jitter, for ``torch.roll``."""
    down, across = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    return down, across
