"""SmoothGrad: gradients averaged over noisy copies of the image."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from convlens.explain.registry import explainer
from convlens.explain.sampled_gradients import Points, PointsOfRows, summed_gradients
from convlens.explain.torch_forward import ForwardPass
from convlens.types import Attribution, Ints


@explainer(
    "smoothgrad",
    title="SmoothGrad",
    needs="model",
    drawing="magnitude",
    shows="saliency averaged over noisy copies of the image: what stays when the gradient's flicker is gone.",
    does_not_show="the network's answer to this very image: every sample is another, noisier one.",
    cost=lambda options, _: 3.0 * options["samples"],
    cheaper_values=lambda options: ("samples", range(options["samples"] - 1, 0, -1)),
)
def smoothgrad(
    forward: ForwardPass,
    target_N: Ints,
    *,
    samples: Annotated[int, Interval(ge=1, le=1000)] = 25,
    noise: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.15,
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0,
) -> Attribution:
    """Mean gradient over ``samples`` copies with Gaussian noise (Smilkov et al. 2017, arXiv:1706.03825).

    Values (N, C, H, W) are signed. ``noise`` is the standard deviation as a share of the image's own range (max −
    min, normalised). ``seed`` makes the noise; a row's noise does not depend on the batch around it.
    """
    started = time.perf_counter()
    x_NCHW = forward.x_NCHW
    deviation_N = (noise * (x_NCHW.amax((1, 2, 3)) - x_NCHW.amin((1, 2, 3)))).float()

    def noisy_copies() -> Callable[[Tensor], PointsOfRows]:
        # On the CPU whatever the device, so that a seed means the same noise everywhere; a copy at a time, so that it
        # means the same in every batch. All rows get the same draws: none depends on the rows before it.
        generator = torch.Generator().manual_seed(seed)

        def numbered(numbers: Tensor) -> PointsOfRows:
            drawn = torch.stack([torch.randn(x_NCHW.shape[1:], generator=generator) for _ in numbers]).to(x_NCHW.device)
            return lambda rows: Points(x_NCHW[rows, None] + deviation_N[rows, None, None, None, None] * drawn)

        return numbered

    weights = torch.full((samples,), 1 / samples, dtype=torch.float64)
    mean = summed_gradients(forward, target_N, weights, noisy_copies, stage="smoothgrad")
    options = {"samples": samples, "noise": noise, "seed": seed}
    meta = forward.meta("logit", started=started, seed=seed)
    return forward.attribution("smoothgrad", mean, target_N, options, meta)
