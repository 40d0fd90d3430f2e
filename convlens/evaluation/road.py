"""ROAD: the target's probability after pixels are replaced by what their neighbours imply (Rong et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from convlens.errors import RequestError
from convlens.explain.scores import probabilities, require_finite
from convlens.types import Activation, Floats, Ints

OutputsOf = Callable[[Tensor], Floats]
"""From images (N, C, H, W) to logits (N, K)."""

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
# The authors add 0.01 to pixels of 0..1; an input is divided by a standard deviation of about 0.225.
NOISE = 0.044


def road_curves(
    outputs_of: OutputsOf,
    x_CHW: Tensor | Floats,
    order: Ints,
    target: int,
    *,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = NOISE,
    seed: int = 0,
    activation: Activation = "softmax",
) -> dict[str, Floats]:
    """The target's probability with each fraction of the pixels imputed (Rong et al. 2022, arXiv:2202.00449).

    ``morf`` imputes the first pixels of ``order`` (``pixel_order``'s: the most relevant ones), ``lerf`` the last; both
    are in the order of ``fractions``, of which each is at least 0 and under 1. A fraction of a pixel is left out.
    ``noise`` is in the input's units (``impute``); all images get the same draws, so that curves of one seed differ by
    their orders alone. ``outputs_of`` gets all images in one batch. Raises RequestError for an order of other pixels,
    for no fractions, and for a fraction or noise that is out of range.
    """
    image_CHW = np.asarray(x_CHW.detach().cpu() if isinstance(x_CHW, Tensor) else x_CHW)
    height, width = image_CHW.shape[1:]
    counts = [_removed_pixels(fraction, height * width) for fraction in fractions]
    if not counts:
        raise RequestError("no fractions; give at least one, such as 0.5", field="road_fractions")
    if not np.array_equal(np.sort(order), np.arange(height * width)):
        raise RequestError(f"the order must hold each of the {height * width} pixels once")
    x_NCHW = np.stack(
        [
            impute(image_CHW, _mask(pixels[:count], height, width), noise=noise, seed=seed)
            for pixels in (order, order[::-1])
            for count in counts
        ]
    )
    logits_NK = require_finite(outputs_of(torch.as_tensor(x_NCHW, device=getattr(x_CHW, "device", None))))
    probability_N = probabilities(torch.as_tensor(logits_NK).double(), activation)[:, target].numpy()
    return {"morf": probability_N[: len(counts)], "lerf": probability_N[len(counts) :]}


def road_values(curves: Mapping[str, Floats]) -> dict[str, float]:
    """``road_morf`` and ``road_lerf``: the means of the two curves over their fractions."""
    return {f"road_{name}": float(np.mean(curve)) for name, curve in curves.items()}


def impute(image_CHW: Floats, removed_HW: Any, *, noise: float = NOISE, seed: int = 0) -> Floats:
    """The image with each removed pixel the weighted mean of its neighbours, plus Gaussian noise of that deviation.

    Direct neighbours weigh 1/6, diagonal ones 1/12; at the border the weights of those that exist are scaled up to 1,
    as the authors' code does. Removed neighbours are unknowns of the same linear system. Of a seed, a pixel's noise
    is the same whichever others are removed. At least one pixel must be left.
    """
    if not (np.isfinite(noise) and noise >= 0):
        raise RequestError(f"noise={noise}; use 0 or more", field="noise")
    imputed_CHW = linear_imputation(image_CHW, removed_HW)
    if noise:
        deviation_CHW = np.random.default_rng(seed).standard_normal(imputed_CHW.shape)
        imputed_CHW += np.where(removed_HW, noise * deviation_CHW, 0.0)
    return imputed_CHW.astype(image_CHW.dtype)


def linear_imputation(image_CHW: Floats, removed_HW: Any) -> Floats:
    """``impute`` without noise, in float64. The channels share one factorisation."""
    channels, height, width = image_CHW.shape
    order, laplacian = _grid(height, width)
    pixels_PC = image_CHW.reshape(channels, -1).T[order].astype(np.float64)
    removed = np.flatnonzero(np.asarray(removed_HW).reshape(-1)[order])
    if len(removed) == len(pixels_PC):
        raise RequestError("all pixels are removed; leave at least one to impute the others from")
    if len(removed):
        pixels_PC[removed] = 0.0
        rows = laplacian[removed]
        # Symmetric and positive definite, so it needs no pivots: the order of elimination stays as given. SuperLU's
        # own orders take twice as long (0.2 s for 0.9 of 224 x 224 pixels, this one 0.1 s), conjugate gradients two to
        # twenty times as long. With relax=32 SuperLU writes past its memory.
        factors = splu(
            rows[:, removed].tocsc(),
            permc_spec="NATURAL",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        pixels_PC[removed] = factors.solve(-(rows @ pixels_PC))
    imputed_CP = np.empty((channels, height * width))
    imputed_CP[:, order] = pixels_PC.T
    return imputed_CP.reshape(image_CHW.shape)


def _removed_pixels(fraction: float, pixels: int) -> int:
    if not 0 <= fraction < 1:
        raise RequestError(f"fraction={fraction}; use 0 or more, and less than 1", field="road_fractions")
    return int(fraction * pixels)


def _mask(positions: Ints, height: int, width: int) -> Any:
    removed = np.zeros(height * width, bool)
    removed[positions] = True
    return removed.reshape(height, width)


@lru_cache(maxsize=2)
def _grid(height: int, width: int) -> tuple[Ints, Any]:
    """The pixels' order of elimination, and in that order each pixel's sum of weights less its neighbours' weights."""
    vertical, horizontal = (_one_two_one(length) for length in (height, width))
    # Their product weighs direct neighbours twice as much as diagonal ones, and the pixel itself, which does not count.
    weights = sparse.kron(vertical, horizontal, format="csr") / 12
    weights.setdiag(0)
    weights.eliminate_zeros()
    order = np.concatenate(_nested_dissection(np.arange(height * width).reshape(height, width)))
    laplacian = sparse.diags_array(weights.sum(1), format="csr") - weights
    return order, laplacian[order][:, order]


def _one_two_one(length: int) -> Any:
    return 2 * sparse.eye_array(length) + sparse.eye_array(length, k=1) + sparse.eye_array(length, k=-1)


def _nested_dissection(pixels_HW: Ints) -> list[Ints]:
    """First both halves, each in this order, last the line between them (George 1973, doi:10.1137/0710032).

    No pixel of one half is a neighbour of one of the other, so eliminating either fills in nothing of the other.
    """
    if pixels_HW.size == 0:
        return []
    if pixels_HW.shape[0] < pixels_HW.shape[1]:
        pixels_HW = pixels_HW.T
    middle = len(pixels_HW) // 2
    halves = _nested_dissection(pixels_HW[:middle]) + _nested_dissection(pixels_HW[middle + 1 :])
    return [*halves, pixels_HW[middle]]
