"""Occlusion: how far the score falls when a window of the picture is hidden."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from convlens.explain.forward import ForwardPass, finite, scores_of
from convlens.explain.registry import explainer
from convlens.explain.windows import Windows
from convlens.types import Attribution, Floats, Ints, ScoreKind

BATCH = 32


@explainer(
    "occlusion",
    title="Occlusion",
    needs="scores",
    drawing="signed",
    shows="how far the score falls when a part of the picture is hidden: what the answer really rests on.",
    does_not_show="evidence that is there twice (hiding one copy costs nothing), nor detail finer than the window.",
    cost=lambda options, side: len(Windows(side, side, options["window"], options["stride"])),
)
def occlusion(
    forward: ForwardPass,
    target_N: Ints,
    *,
    window: Annotated[int, Interval(ge=1, le=4096)] = 32,
    stride: Annotated[int, Interval(ge=1, le=4096)] = 16,
    fill: Annotated[float, Interval(ge=-10.0, le=10.0)] = 0.0,
    score: ScoreKind = "logit",
) -> Attribution:
    """Mean score lost over the windows that cover each pixel (Zeiler & Fergus 2014, arXiv:1311.2901).

    Values (N, 1, H, W) are positive where hiding lowers the score; ``extras["grid_NRQ"]`` holds the raw drop of every
    window, row by row. ``window`` and ``stride`` are in pixels of the model's input. ``fill`` is in normalised units:
    0 is the training mean, i.e. grey, not black. The last window of a row sits flush with the edge. The sum over a
    batch of float32 is taken in float32, a float64 picture stays float64. Raises RequestError when a stride would
    skip pixels.
    """
    started = time.perf_counter()
    height, width = forward.x_NCHW.shape[-2:]
    windows = Windows(height, width, window, stride)
    scores = [_hidden_scores(forward, n, int(target_N[n]), windows, fill, score) for n in range(len(forward))]
    hidden_NRQ = np.stack(scores).reshape(len(forward), len(windows.tops), len(windows.lefts))
    drops_NRQ = forward.scores(target_N, score)[:, None, None] - hidden_NRQ
    options = {"window": window, "stride": stride, "fill": fill, "score": score}
    meta = forward.meta(score, started=started, runtime=forward.scorer.name)
    values_NCHW = windows.mean_map(drops_NRQ)[:, None]
    return forward.attribution("occlusion", values_NCHW, target_N, options, meta, {"grid_NRQ": drops_NRQ})


def _hidden_scores(forward: ForwardPass, n: int, target: int, windows: Windows, fill: float, kind: ScoreKind) -> Floats:
    """The target's score with each window hidden in turn."""
    parts = [finite(forward.scorer.logits(batch)) for batch in _hidden(forward.x_NCHW[n], windows, fill)]
    return scores_of(np.concatenate(parts), kind)[:, target]


def _hidden(x_CHW: Tensor, windows: Windows, fill: float) -> Iterator[Tensor]:
    """Batches of copies of the picture, each with another window filled."""
    corners = iter(windows.corners)
    while chunk := list(islice(corners, BATCH)):
        # clone, not contiguous: of one window alone that would be the picture itself, and the window would stay in it.
        x_NCHW = x_CHW.expand(len(chunk), -1, -1, -1).clone(memory_format=torch.channels_last)
        for copy_CHW, (top, left) in zip(x_NCHW, chunk, strict=True):
            copy_CHW[:, top : top + windows.window, left : left + windows.window] = fill
        yield x_NCHW
