"""RISE: how far the score rises, on average, where a randomly masked image shows a pixel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from convlens.errors import RequestError
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer, require_classes
from convlens.explain.scores import scores_of
from convlens.types import Attribution, Floats, Ints, ScoreKind, Step

_BATCH = 64  # masks made at a time


@explainer(
    "rise",
    title="RISE",
    needs="scores",
    drawing="signed",
    shows_regions=True,
    shows="how far the score rises, on average over randomly masked images, where a pixel is left visible.",
    does_not_show="detail finer than a mask's cell; and few masks leave noise, which another seed changes.",
    cost=lambda options, _: float(options["masks"]),
    cheaper_values=lambda options: ("masks", range(options["masks"] - 1, 1, -1)),
)
def rise(
    forward: Forward,
    target_N: Ints,
    *,
    masks: Annotated[int, Interval(ge=2, le=20_000)] = 1000,
    cells: Annotated[int, Interval(ge=1, le=128)] = 7,
    probability: Annotated[float, Interval(ge=0.01, le=0.99)] = 0.5,
    score: ScoreKind = "logit",
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0,
) -> Attribution:
    """Mean score of the masked images that show a pixel, less their mean score (Petsiuk et al. 2018, arXiv:1806.07421).

    A mask is a grid of ``cells`` × ``cells`` that are open with ``probability``, stretched bilinearly and shifted by
    less than a cell; it is multiplied with the normalised image, so that 0 leaves mean grey. Values (N, 1, H, W) are in
    units of the score. The paper's own map, which keeps the mean score and so the noise of how often the masks showed a
    pixel, is ``extras["uncentred_N1HW"]``. ``seed`` makes the masks, the same ones for all rows. Raises RequestError
    for more cells than pixels, UnsupportedModelError for a network without classes.
    """
    started = time.perf_counter()
    require_classes(forward, "rise")
    height, width = forward.x_NCHW.shape[-2:]
    if cells > min(height, width):
        raise RequestError(
            f"cells={cells} are more than the image's {min(height, width)} pixels a side; use 1..{min(height, width)}",
            field="options.cells",
        )
    drawn = _masks(seed, masks, cells, probability, height, width)
    sums = _Sums(forward, target_N, score, masks)
    for first in range(0, masks, _BATCH):
        sums.add(torch.stack([next(drawn) for _ in range(min(_BATCH, masks - first))]))
    options = {"masks": masks, "cells": cells, "probability": probability, "score": score, "seed": seed}
    dtype = forward.scores(target_N, score).dtype
    extras = {"uncentred_N1HW": (sums.scored_NHW / (probability * masks))[:, None].astype(dtype)}
    values_NCHW = sums.covariance_NHW[:, None] / probability
    meta = forward.meta(score, started=started, seed=seed)
    return forward.attribution("rise", values_NCHW.astype(dtype), target_N, options, meta, extras)


class _Sums:
    """Sums over the masks added so far, of ``total``, in float64."""

    def __init__(self, forward: Forward, target_N: Ints, score: ScoreKind, total: int) -> None:
        self._forward, self._target_N, self._score, self._total = forward, target_N, score, total
        height, width = forward.x_NCHW.shape[-2:]
        self._masks = 0
        self._score_N = np.zeros(len(forward))
        self._shown_HW = np.zeros((height, width))
        self.scored_NHW = np.zeros((len(forward), height, width))

    def add(self, masks_BHW: Tensor) -> None:
        shown_BHW = masks_BHW.double().numpy()
        masks_B1HW = masks_BHW[:, None].to(self._forward.x_NCHW)
        for n in range(len(self._forward)):
            score_B = self._scores(n, masks_B1HW)
            self.scored_NHW[n] += np.tensordot(score_B, shown_BHW, 1)
            self._score_N[n] += score_B.sum()
        self._shown_HW += shown_BHW.sum(0)
        self._masks += len(masks_BHW)

    @property
    def covariance_NHW(self) -> Floats:
        """Of score and mask, by the sample.

        Over the masks' mean its expectation is the paper's equation 6 less the mean score, without the noise that a
        mean score far from 0 brings into the paper's sum.
        """
        # Two seeds' maps of a cat by the default model, 600 masks each, correlate by .85 so and by -.27 uncentred.
        mean_N11 = self._score_N[:, None, None] / self._masks
        return np.asarray((self.scored_NHW - mean_N11 * self._shown_HW) / (self._masks - 1))

    def _scores(self, row: int, masks_B1HW: Tensor) -> Floats:
        """The target's score of the row's image behind each mask; (B,)."""
        forward, x_CHW = self._forward, self._forward.x_NCHW[row]
        done = self._masks * len(forward) + row * len(masks_B1HW)
        score_B: list[float] = []
        outputs = forward.outputs_in_parts(len(masks_B1HW), lambda first, last: x_CHW * masks_B1HW[first:last])
        with closing(outputs):
            for outputs_BK in outputs:
                score_B += scores_of(outputs_BK, self._score, forward.spec.activation)[:, self._target_N[row]].tolist()
                forward.on_step(Step("rise", done + len(score_B), self._total * len(forward)))
        return np.asarray(score_B, np.float64)


def _masks(seed: int, count: int, cells: int, probability: float, height: int, width: int) -> Iterator[Tensor]:
    """Masks (H, W) of 0..1, each from draws of its own, so that they are the same in batches of any size."""
    # On the CPU whatever the device, so that a seed means the same masks everywhere.
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-height // cells), -(-width // cells)
    size = (cells + 1) * rows, (cells + 1) * columns  # as the authors' code has it: a cell more, to shift within
    for _ in range(count):
        open_11SS = (torch.rand(1, 1, cells, cells, generator=generator) < probability).float()
        y, x = (int(torch.randint(side, (), generator=generator)) for side in (rows, columns))
        mask_HW = functional.interpolate(open_11SS, size, mode="bilinear")[0, 0]
        yield mask_HW[y : y + height, x : x + width]
