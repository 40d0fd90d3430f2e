"""Regularisers of synthesised images: Yosinski's operators (2015, arXiv:1506.06579) and total variation.

Yosinski's are decay, Gaussian blur, clipping of pixels with small norm and of those with small contribution, applied in
this order after each step (the order of the authors' toolbox). All take images (N, C, H, W) that are 0 at the mean
grey, so that a clipped pixel is grey.
"""

from __future__ import annotations

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
