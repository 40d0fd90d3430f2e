"""What keeps synthesised images natural: Yosinski's operators (2015, arXiv:1506.06579), total variation, transforms.

Yosinski's are decay, Gaussian blur, clipping of pixels with small norm and of those with small contribution, applied in
this order after each step (the order of the authors' toolbox). All take images (N, C, H, W) that are 0 at the mean
grey, so that a clipped pixel is grey.

The transforms, before each step, are jitter, scaling and rotation (Olah et al. 2017; Lucid's transforms): what still
excites the network after them is a shape rather than a pattern of single pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_blur(x_NCHW: Tensor, sigma: float) -> Tensor:
    """Convolved with a Gaussian of ``sigma`` pixels, cut off at four sigma; the border repeats the outermost pixel."""
    if sigma <= 0:
        return x_NCHW
    reach = max(1, round(4 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=x_NCHW.dtype, device=x_NCHW.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = x_NCHW.shape[1]
    padded = functional.pad(x_NCHW, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(across, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)


def clip_small_norm(x_NCHW: Tensor, percentile: float) -> Tensor:
    """Set to 0 the pixels whose norm over the channels is below that percentile of their image's."""
    return _clip_smallest(x_NCHW, x_NCHW.norm(dim=1), percentile)


def clip_small_contribution(x_NCHW: Tensor, grad_NCHW: Tensor, percentile: float) -> Tensor:
    """Set to 0 the pixels whose |Σ x · gradient| over the channels is below that percentile of their image's.

    To first order, that is how little the objective would change were the pixel 0.
    """
    return _clip_smallest(x_NCHW, (x_NCHW * grad_NCHW).sum(1).abs(), percentile)


def total_variation(x_NCHW: Tensor, beta: float = 2.0) -> Tensor:
    """Σ ((x[i, j+1] − x)² + (x[i+1, j] − x)²)^(β/2) of each image (N,) (Mahendran & Vedaldi 2015, equation 4).

    Differences beyond the border count as 0. The gradient is finite on flat images also for β < 2.
    """
    across, down = x_NCHW.diff(dim=3), x_NCHW.diff(dim=2)
    if beta == 2.0:
        return (across**2).flatten(1).sum(1) + (down**2).flatten(1).sum(1)
    squared = functional.pad(across, (0, 1)) ** 2 + functional.pad(down, (0, 0, 0, 1)) ** 2
    flat = squared == 0
    # The power of 0 has an infinite slope, and a mask behind it alone would give 0 · infinity: so mask before it, too.
    return torch.where(flat, 0.0, torch.where(flat, 1.0, squared) ** (beta / 2)).flatten(1).sum(1)


def _clip_smallest(x_NCHW: Tensor, size_NHW: Tensor, percentile: float) -> Tensor:
    if percentile <= 0:
        return x_NCHW
    ranked = size_NHW.flatten(1)
    # kthvalue: torch.quantile refuses images of more than 16 million pixels, and sorts where a selection will do.
    k = max(1, min(ranked.shape[1], round(percentile / 100 * ranked.shape[1])))
    limit_N = ranked.kthvalue(k, dim=1).values
    return x_NCHW * (size_NHW > limit_N[:, None, None])[:, None]


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
