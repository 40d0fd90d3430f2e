"""Infidelity and max-sensitivity as captum computes them, on noise that is drawn from a seed.

captum and not Quantus: Quantus 0.6's infidelity knows no best scale, so that it compares the sizes of maps, and adds
each patch of noise to those before; its max-sensitivity is captum's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.explain.scores import require_finite
from convlens.types import Floats

OutputsOf = Callable[[Tensor], Floats]
"""From images (N, C, H, W) to logits (N, K)."""
ExplanationOf = Callable[[Tensor], Floats]
"""From images (N, C, H, W) to their maps (N, C or 1, H, W), each image by itself."""

SIGMA = 0.2
RADIUS = 0.02
_BATCH = 10  # images of noise at a time


@dataclass(frozen=True)
class ScoreChanges:
    """What noise does to one image's score: ``noise_SCHW`` is taken from the image, which costs ``change_S``."""

    noise_SCHW: Floats
    change_S: Floats
    sigma: float
    seed: int


def score_changes(
    outputs_of: OutputsOf, x_CHW: Tensor, target: int, *, sigma: float = SIGMA, samples: int = 50, seed: int = 0
) -> ScoreChanges:
    """The target's logit less its logit without Gaussian noise, for each of ``samples`` draws of that noise.

    ``sigma`` is in the input's units (after normalisation 0.2 is about 11 of 255 grey levels). Made once for an image:
    all its maps are judged by the same draws and forward passes, ``samples`` + 1 in number. Raises RequestError for no
    sample and for a sigma that is not above 0.
    """
    _require_positive("sigma", sigma)
    _require_positive("samples", samples)
    generator = torch.Generator().manual_seed(seed)
    noise_SCHW = sigma * torch.randn((samples, *x_CHW.shape), generator=generator)
    image_1CHW, parts = x_CHW[None], []
    for part in torch.split(noise_SCHW, _BATCH):
        parts.append(_logits(outputs_of, image_1CHW - part.to(image_1CHW))[:, target])
    change_S = _logits(outputs_of, image_1CHW)[0, target] - np.concatenate(parts)
    return ScoreChanges(noise_SCHW.numpy(), change_S, sigma, seed)


def infidelity(changes: ScoreChanges, values_CHW: Floats) -> float:
    """Mean of (β Σ noise · values − change)² over the draws, at the β that makes it least (Yeh et al. 2019).

    captum's ``infidelity`` with ``normalize=True`` (arXiv:1901.09392, and the authors' code), in squared logits: 0 where
    the values are the weights of a network that is linear in its input, the mean squared change where they tell nothing
    of it, all zeros included. The sign and the size of the map do not matter, as β takes either. A map of one channel
    stands for all channels alike. Raises RequestError for a map of another size.
    """
    from captum.metrics import infidelity as captum_infidelity  # 1 s, and only evaluations need it

    shape = changes.noise_SCHW.shape[1:]
    if values_CHW.shape not in (shape, (1, *shape[1:])):
        raise RequestError(f"a map of {values_CHW.shape} values for an image of {shape}; they must fit")
    noise_parts = iter(torch.split(torch.from_numpy(changes.noise_SCHW), _BATCH))
    change_parts = iter(torch.split(torch.from_numpy(changes.change_S)[:, None], _BATCH))

    # captum asks a network for scores. Here they are known, so each travels with its image as a second input, which
    # the "network" reads and the map gives no weight. Float64, as captum expands the square into its three terms.
    def perturb(_: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        noise_BCHW, change_B1 = next(noise_parts).double(), next(change_parts)
        return (noise_BCHW, torch.zeros_like(change_B1)), (-noise_BCHW, -change_B1)

    values_1CHW = torch.as_tensor(np.array(np.broadcast_to(values_CHW, shape), np.float64))[None]
    result = captum_infidelity(
        lambda _, score_B1: score_B1[:, 0],
        perturb,
        (torch.zeros_like(values_1CHW), torch.zeros(1, 1, dtype=torch.float64)),
        (values_1CHW, torch.zeros(1, 1, dtype=torch.float64)),
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
        return (torch.from_numpy(np.array(values_NCHW, np.float64)),)

    return float(sensitivity_max(explain, x_CHW[None], perturb, perturb_radius=radius, n_perturb_samples=samples))


def _logits(outputs_of: OutputsOf, x_NCHW: Tensor) -> Floats:
    return require_finite(np.asarray(outputs_of(x_NCHW), np.float64))


def _require_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise RequestError(f"{name}={value}; use more than 0", field=name)
