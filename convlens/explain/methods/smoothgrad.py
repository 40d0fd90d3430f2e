"""SmoothGrad, by captum: gradients averaged over noisy copies of the image."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import torch
from annotated_types import Interval

from convlens.explain.registry import explainer
from convlens.explain.torch_forward import ForwardPass, ProgressModule
from convlens.instrument import private_rng
from convlens.runtime.memory import with_smaller_batch
from convlens.types import Attribution, Ints

_BATCH = 16


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
    rows = [
        with_smaller_batch(partial(_attribute_row, forward, n, int(target), samples, noise, seed), _BATCH)
        for n, target in enumerate(target_N)
    ]
    options = {"samples": samples, "noise": noise, "seed": seed}
    meta = forward.meta("logit", started=started, runtime="torch+captum", seed=seed)
    return forward.attribution("smoothgrad", torch.cat(rows), target_N, options, meta)


def _attribute_row(
    forward: ForwardPass, n: int, target: int, samples: int, noise: float, seed: int, batch: int
) -> torch.Tensor:
    from captum.attr import NoiseTunnel, Saliency  # on first use: it is slow to import and brings matplotlib

    # Row by row: the noise of a batch would depend on how many rows stand before this one.
    x_NCHW = forward.x_NCHW[n : n + 1].clone().requires_grad_()
    tunnel = NoiseTunnel(Saliency(ProgressModule(forward, "smoothgrad", samples)))
    deviation = noise * float(x_NCHW.detach().max() - x_NCHW.detach().min())
    with private_rng(seed):
        values: torch.Tensor = tunnel.attribute(
            x_NCHW,
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=min(batch, samples),
            stdevs=deviation,
            target=target,
            abs=False,
        )
    return values.detach()
