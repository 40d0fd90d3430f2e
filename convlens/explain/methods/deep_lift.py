"""DeepLIFT: the score's rise from a baseline, shared out step by step through the network."""

from __future__ import annotations

import time
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from convlens.explain.batch_size import cpu_gradient_batch
from convlens.explain.registry import explainer
from convlens.explain.torch_forward import ForwardPass
from convlens.instrument import RescaledSteps, fast_convolutions, in_format_of, require_rescaled_network
from convlens.runtime.memory import with_smaller_batch
from convlens.runtime.torch_runtime import to_host
from convlens.types import Attribution, Floats, Ints

_GPU_BATCH = 16  # images of one forward and backward pass
_TOLERATED_GAP = 0.01  # of the rise


@explainer(
    "deep_lift",
    title="DeepLIFT",
    needs="model",
    drawing="signed",
    overlay_signs="positive",
    shows="each pixel's share of the score's rise from a grey image to this one, by one pass; the shares add up to it.",
    does_not_show="anything where the image equals the baseline: mean-grey regions always get zero.",
    cost=lambda _, __: 6.0,
)
def deep_lift(
    forward: ForwardPass, target_N: Ints, *, baseline: Annotated[float, Interval(ge=-10.0, le=10.0)] = 0.0
) -> Attribution:
    """Multipliers by the rescale rule, times the difference to ``baseline`` (Shrikumar et al. 2017, arXiv:1704.02685).

    Values (N, C, H, W) are signed, in units of the logit: over C, H, W they sum to logit(x) − logit(baseline) up to
    rounding; where they do not, there is a warning. ``baseline`` is in normalised units, 0 is grey. Raises
    UnsupportedModelError for networks of other steps than ReLU, max pooling and linear layers: gates, say.
    """
    started = time.perf_counter()
    x_NCHW = forward.x_NCHW
    on_cpu = x_NCHW.device.type == "cpu"
    most = cpu_gradient_batch(forward.classifier.module, x_NCHW) // 2 if on_cpu else _GPU_BATCH
    multiplier_NCHW, rise_N = with_smaller_batch(lambda batch: _multipliers(forward, target_N, baseline, batch), most)
    values_NCHW = multiplier_NCHW * (x_NCHW - baseline)
    gap_N = values_NCHW.double().flatten(1).sum(1) - rise_N.double()
    meta = forward.meta("logit", started=started, warnings=_warnings(to_host(gap_N), to_host(rise_N.double())))
    return forward.attribution("deep_lift", values_NCHW, target_N, {"baseline": baseline}, meta)


def _multipliers(forward: ForwardPass, target_N: Ints, baseline: float, batch: int) -> tuple[Tensor, Tensor]:
    """The multipliers (N, C, H, W) and the rises (N,) of the logits, for ``batch`` rows at a time."""
    targets: Tensor = torch.as_tensor(target_N, device=forward.x_NCHW.device)
    parts = zip(torch.split(forward.x_NCHW, batch), torch.split(targets, batch), strict=True)
    done = [_of_batch(forward, x_NCHW, targets_N, baseline) for x_NCHW, targets_N in parts]
    multipliers, rises = zip(*done, strict=True)
    return torch.cat(multipliers), torch.cat(rises)


def _of_batch(forward: ForwardPass, x_NCHW: Tensor, targets_N: Tensor, baseline: float) -> tuple[Tensor, Tensor]:
    module, count = forward.classifier.module, len(x_NCHW)
    both = torch.cat([x_NCHW, torch.full_like(x_NCHW, baseline)])
    both = in_format_of(module, both).detach().requires_grad_()
    with torch.enable_grad(), fast_convolutions(both.device), RescaledSteps():
        logits = module(both)
        score_N, baseline_N = (part.gather(1, targets_N[:, None])[:, 0] for part in logits.chunk(2))
        total = score_N.sum()
    require_rescaled_network(logits, both, method="deep_lift")
    (multiplier,) = torch.autograd.grad(total, both)
    return multiplier[:count], (score_N - baseline_N).detach()


def _warnings(gap_N: Floats, rise_N: Floats) -> tuple[str, ...]:
    missed = float(max(abs(gap_N) / abs(rise_N).clip(1e-6), default=0.0))
    if missed <= _TOLERATED_GAP:
        return ()
    return (f"the shares miss the score's rise by {missed:.0%}, by rounding or by a step in place that has no rule",)
