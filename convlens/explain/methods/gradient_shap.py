"""GradientSHAP: gradients at random places between random baselines and the image."""

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
    "gradient_shap",
    title="GradientSHAP",
    needs="model",
    drawing="signed",
    overlay_signs="positive",
    shows="each pixel's share of the score's rise from plain random colours to this image; grey regions have one, too.",
    does_not_show="the same numbers for another seed: the draws leave noise, and the shares add up on average only.",
    cost=lambda options, _: 3.0 * options["samples"],
    cheaper_values=lambda options: ("samples", range(options["samples"] - 1, 0, -1)),
)
def gradient_shap(
    forward: ForwardPass,
    target_N: Ints,
    *,
    samples: Annotated[int, Interval(ge=1, le=1000)] = 50,
    baseline: Annotated[float, Interval(ge=-10.0, le=10.0)] = 0.0,
    spread: Annotated[float, Interval(ge=0.0, le=10.0)] = 1.0,
    noise: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0,
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0,
) -> Attribution:
    """Mean of gradient × (image − baseline) over random baselines and places between them (Lundberg & Lee 2017).

    Values (N, C, H, W) are signed, in units of the logit; arXiv:1705.07874. A baseline is an image of one colour, drawn
    from normal distributions around ``baseline`` with the standard deviation ``spread``, both in normalised units: 0
    and 1 are those of the training images. ``noise`` is added to the image, as for ``smoothgrad``. ``seed`` makes all
    draws; a row's do not depend on the batch around it.
    """
    started = time.perf_counter()
    x_NCHW = forward.x_NCHW
    deviation_N = noise * (x_NCHW.amax((1, 2, 3)) - x_NCHW.amin((1, 2, 3)))

    def between() -> Callable[[Tensor], PointsOfRows]:
        generator = torch.Generator().manual_seed(seed)

        def numbered(numbers: Tensor) -> PointsOfRows:
            draws = [_draw(generator, x_NCHW[0], noisy=noise > 0) for _ in numbers]
            share_B, colour_BC11, noise_BCHW = (torch.stack(each) for each in zip(*draws, strict=True))
            baseline_BC11 = baseline + spread * colour_BC11

            def of_rows(rows: Tensor) -> Points:
                image_RBCHW = x_NCHW[rows, None] + deviation_N[rows, None, None, None, None] * noise_BCHW
                difference_RBCHW = image_RBCHW - baseline_BC11
                return Points(baseline_BC11 + share_B[:, None, None, None] * difference_RBCHW, difference_RBCHW)

            return of_rows

        return numbered

    weights = torch.full((samples,), 1 / samples, dtype=torch.float64)
    values_NCHW = summed_gradients(forward, target_N, weights, between, stage="gradient_shap")
    options = {"samples": samples, "baseline": baseline, "spread": spread, "noise": noise, "seed": seed}
    meta = forward.meta("logit", started=started, seed=seed)
    return forward.attribution("gradient_shap", values_NCHW, target_N, options, meta)


def _draw(generator: torch.Generator, like_CHW: Tensor, *, noisy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One sample's place between baseline and image, the baseline's colour (C, 1, 1) and its noise (C, H, W)."""
    # On the CPU whatever the device, and a sample at a time, so that a seed means the same everywhere.
    share = torch.rand((), generator=generator)
    colour_C11 = torch.randn(len(like_CHW), 1, 1, generator=generator)
    noise_CHW = torch.randn(like_CHW.shape, generator=generator) if noisy else torch.zeros(1, 1, 1)
    return share.to(like_CHW), colour_C11.to(like_CHW), noise_CHW.to(like_CHW)
