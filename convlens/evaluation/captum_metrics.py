"""Infidelity and max-sensitivity as captum computes them, on perturbations that are drawn from a seed.

captum and not Quantus: Quantus 0.6's infidelity knows no best scale, so that it compares the sizes of maps, and adds
each patch of noise to those before; its max-sensitivity is captum's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from convlens.errors import RequestError, unknown_name
from convlens.explain.scores import require_finite
from convlens.types import Floats

OutputsOf = Callable[[Tensor], Floats]
"""From images (N, C, H, W) to logits (N, K)."""
ExplanationOf = Callable[[Tensor], Floats]
"""From images (N, C, H, W) to their maps (N, C or 1, H, W), each image by itself."""

Perturbation = Literal["squares", "noise"]

SIGMA = 0.2
RADIUS = 0.02
_BATCH = 10  # perturbed images at a time
_LARGEST, _PARTS = 10, 28  # the authors' squares have sides of 1 to 10 pixels in images of 28


@dataclass(frozen=True)
class ScoreChanges:
    """What taking ``perturbation_SCHW`` from one image costs its score: ``change_S``.

    Of squares, C is 1: the perturbation is 1 where pixels are removed, 0 elsewhere.
    """

    perturbation_SCHW: Floats
    change_S: Floats


def score_changes(
    outputs_of: OutputsOf,
    x_CHW: Tensor,
    target: int,
    *,
    perturbation: Perturbation = "squares",
    samples: int = 100,
    sigma: float = SIGMA,
    seed: int = 0,
) -> ScoreChanges:
    """The target's logit less its logit without each of ``samples`` perturbations, both kinds Yeh et al.'s (2019).

    ``squares`` sets squares of 1 to 10 twenty-eighths of the shorter side, side and place drawn evenly, to the training
    mean. ``noise`` takes Gaussian noise of deviation ``sigma`` in the input's units (after normalisation 0.2 is about
    11 of 255 grey levels) from every value: it suits networks that are nearly linear, but in photographs no map
    tells its effect (14 methods on EfficientNet-Lite0: errors of 0.92 to 1 of the mean square, random maps 0.97 to 1).

    Made once for an image: all its maps are judged by the same draws and ``samples`` + 1 forward passes, 10 in a batch.
    Raises RequestError for another perturbation, no sample and a sigma that is not above 0.
    """
    if perturbation not in get_args(Perturbation):
        raise RequestError(unknown_name("perturbation", perturbation, get_args(Perturbation)), field="perturbation")
    _require_positive("sigma", sigma)
    _require_positive("samples", samples)
    generator = torch.Generator().manual_seed(seed)
    if perturbation == "noise":
        perturbation_SCHW = sigma * torch.randn((samples, *x_CHW.shape), generator=generator)
    else:
        perturbation_SCHW = _squares(samples, x_CHW.shape[1], x_CHW.shape[2], generator)
    image_1CHW, parts = x_CHW[None], []
    for part in torch.split(perturbation_SCHW, _BATCH):
        taken = part.to(image_1CHW)
        perturbed = image_1CHW - (taken if perturbation == "noise" else taken * image_1CHW)
        parts.append(_logits(outputs_of, perturbed)[:, target])
    change_S = _logits(outputs_of, image_1CHW)[0, target] - np.concatenate(parts)
    return ScoreChanges(perturbation_SCHW.numpy(), change_S)


def infidelity(changes: ScoreChanges, values_CHW: Floats) -> float:
    """Mean of (β Σ perturbation · values − change)² over the draws, at the β that makes it least (Yeh et al. 2019).

    captum's ``infidelity`` with ``normalize=True`` (arXiv:1901.09392, as the authors' code), in squared logits: 0 where
    the map tells the changes exactly, their mean square where it tells nothing of them, as one of zeros does. Neither
    the size of a map nor its sign matters, as β takes either.

    Give ``relevance(values_CHW, ...)[None]`` for squares: the relevance inside one predicts what its removal costs,
    that of several channels is added up. A network that is linear in its input has infidelity 0 by its input times its
    weights, for noise by its weights alone. A map of one channel stands for all channels alike. Raises RequestError for
    a map of another size.
    """
    from captum.metrics import infidelity as captum_infidelity  # 1 s, and only evaluations need it

    channels, height, width = changes.perturbation_SCHW.shape[1:]
    if values_CHW.ndim != 3 or values_CHW.shape[1:] != (height, width) or (channels > 1 < len(values_CHW) != channels):
        raise RequestError(
            f"a map of {values_CHW.shape} values does not fit perturbations of {channels, height, width}"
        )
    values_CHW = values_CHW.sum(0, keepdims=True) if channels == 1 else values_CHW
    perturbations = iter(torch.split(torch.from_numpy(changes.perturbation_SCHW), _BATCH))
    known_changes = iter(torch.split(torch.from_numpy(changes.change_S)[:, None], _BATCH))

    # captum asks a network for scores. Here they are known, so each travels with its image as a second input, which
    # the "network" reads and the map gives no weight. Float64, as captum expands the square into its three terms.
    def perturb(_: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        taken_BCHW, change_B1 = next(perturbations).double(), next(known_changes)
        return (taken_BCHW, torch.zeros_like(change_B1)), (-taken_BCHW, -change_B1)

    spread_CHW = np.broadcast_to(values_CHW, (channels, height, width))
    values_1CHW, no_score = torch.as_tensor(np.array(spread_CHW, np.float64))[None], torch.zeros(1, 1).double()
    result = captum_infidelity(
        lambda _, score_B1: score_B1[:, 0],
        perturb,
        (torch.zeros_like(values_1CHW), no_score),
        (values_1CHW, no_score),
        n_perturb_samples=len(changes.change_S),
        max_examples_per_batch=min(_BATCH, len(changes.change_S)),
        normalize=True,
    )
    return max(0.0, float(result))  # the three terms of a perfect map add up to 0 but for rounding


def max_sensitivity(
    explanation_of: ExplanationOf, x_CHW: Tensor, *, radius: float = RADIUS, samples: int = 10, seed: int = 0
) -> float:
    """Largest of ``samples`` values of ‖map of x + noise − map of x‖ / ‖map of x‖ (Yeh et al. 2019, arXiv:1901.09392).

    captum's ``sensitivity_max``, by its own defaults: noise uniform in ±``radius`` of the input's units (after
    normalisation 0.02 is about 1 of 255 grey levels, which nobody sees), 10 draws, raw values in the Euclidean norm. A
    map of zeros divides by 1. ``explanation_of`` gets the image, then its noisy copies in one batch, and explains the
    same target in all of them. Raises RequestError for no sample and for a radius that is not above 0.
    """
    from captum.metrics import sensitivity_max

    _require_positive("radius", radius)
    _require_positive("samples", samples)
    generator = torch.Generator().manual_seed(seed)

    # The noise is drawn on the CPU, so that it is the same on every device.
    def perturb(x_NCHW: Tensor) -> Tensor:
        noise_NCHW = torch.empty(x_NCHW.shape).uniform_(-radius, radius, generator=generator)
        return x_NCHW + noise_NCHW.to(x_NCHW)

    # captum passes a tuple the first time and a tensor later, and takes a tensor it gets for a tuple of its rows.
    def explain(x_NCHW: Tensor | tuple[Tensor]) -> tuple[Tensor]:
        images_NCHW = x_NCHW[0] if isinstance(x_NCHW, tuple) else x_NCHW
        with torch.enable_grad():  # captum switches gradients off, and many maps are gradients
            values_NCHW = explanation_of(images_NCHW)
        # In the order of the axes: captum flattens by view, and gradients of a channels-last network lie otherwise.
        return (torch.from_numpy(np.array(values_NCHW, np.float64, order="C")),)

    return float(sensitivity_max(explain, x_CHW[None], perturb, perturb_radius=radius, n_perturb_samples=samples))


def _squares(samples: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(S, 1, H, W): 1 in the square, 0 elsewhere."""
    masks_S1HW = torch.zeros(samples, 1, height, width)
    part, top, left = torch.rand(3, samples, generator=generator, dtype=torch.float64).tolist()
    for n in range(samples):
        side = max(1, round((1 + int(part[n] * _LARGEST)) * min(height, width) / _PARTS))
        y, x = int(top[n] * (height - side + 1)), int(left[n] * (width - side + 1))
        masks_S1HW[n, :, y : y + side, x : x + side] = 1
    return masks_S1HW


def _logits(outputs_of: OutputsOf, x_NCHW: Tensor) -> Floats:
    return require_finite(np.asarray(outputs_of(x_NCHW), np.float64))


def _require_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise RequestError(f"{name}={value}; use more than 0", field=name)
