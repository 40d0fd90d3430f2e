"""Occlusion: how far the score falls when a window of the image is hidden."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, Len
from torch import Tensor

from convlens.errors import RequestError
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.explain.scores import scores_of
from convlens.explain.sweeps.autotune import SweepAutotuner, half_sweep
from convlens.explain.sweeps.backends import BatchedSweep, SweepBackend, SweepRequest
from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_contract import Precision, Strategy
from convlens.types import Attribution, Floats, Ints, ScoreKind, Step

Side = Annotated[int, Interval(ge=1, le=4096)]
_NOTICEABLE = 0.1  # of the largest drop


def _sizes(window: int | Sequence[int]) -> tuple[int, ...]:
    return (window,) if isinstance(window, int) else tuple(window)


def _cost(options: Mapping[str, Any], size: tuple[int, int]) -> float:
    return sum(len(Windows(*size, window, options["stride"])) for window in _sizes(options["window"]))


def _rate_key(options: Mapping[str, Any], size: tuple[int, int], sweeps: SweepAutotuner) -> str:
    """The backends that would be used now: some are many times faster than others."""
    names = []
    for window in _sizes(options["window"]):
        windows = Windows(*size, window, options["stride"])
        backend = sweeps.choose(windows, strategy=options["strategy"], precision=options["precision"])
        names.append(f"{backend.name} {backend.kind}" if backend else "")
    return ", ".join(dict.fromkeys(names))


def _cheaper_values(options: Mapping[str, Any]) -> tuple[str, range]:
    return "stride", range(options["stride"] + 1, min(_sizes(options["window"])) + 1)


@explainer(
    "occlusion",
    title="Occlusion",
    needs="scores",
    drawing="signed",
    shows_regions=True,
    shows="how far the score falls when a part of the image is hidden: what the answer really rests on.",
    does_not_show="evidence that is there twice (hiding one copy costs nothing), nor detail finer than the window.",
    cost=_cost,
    rate_key=_rate_key,
    cheaper_values=_cheaper_values,
)
def occlusion(
    forward: Forward,
    target_N: Ints,
    *,
    window: Side | Annotated[list[Side], Len(1, 8)] = 32,
    stride: Side = 16,
    fill: Annotated[float, Interval(ge=-10.0, le=10.0)] = 0.0,
    score: ScoreKind = "logit",
    strategy: Strategy = "full",
    precision: Precision = "float32",
) -> Attribution:
    """Mean score lost over the windows that cover each pixel (Zeiler & Fergus 2014, arXiv:1311.2901).

    Values (N, 1, H, W) are positive where hiding lowers the score; ``extras["grid_NRQ"]`` holds the raw drop of every
    window, row by row. ``window`` and ``stride`` are in pixels of the model's input. ``fill`` is in normalised units:
    0 is the training mean, i.e. grey, not black. The last window of a row sits flush with the edge. The sum over a
    batch of float32 is taken in float32, a float64 image stays float64. Raises RequestError when a stride would skip
    pixels.

    For several ``window`` sizes the values are the mean of their maps, and ``extras`` holds each size's own
    ``map_SIZE_NHW`` and ``grid_SIZE_NRQ``. Of the model's sweep backends (torch, graphs), all of which give the same
    scores, the fastest is used; ``meta.runtime`` and ``meta.sweep`` say which.

    A network without classes is explained by its embedding: the score is its cosine similarity to that of the image
    itself, whatever ``score``, ``strategy`` and ``precision`` say.

    ``precision="half"`` computes in float16 on a GPU and bfloat16 on the CPU, where that is faster, and states its
    deviation from float32, estimated from a few windows: ``extras["half_deviation_N"]`` is max |half - full| / max
    |full| of the scores. Drops are small differences of scores: ``half_drop_deviation_N`` is the same max |half - full|
    relative to the image's largest |drop|; where it exceeds a tenth, there is a warning. ``strategy="incremental"``
    recomputes only what a window can change, on a graph exported for it; before using it, see docs/occlusion.md on US
    patent 12,346,812.
    """
    started = time.perf_counter()
    sizes = _sizes(window)
    if len(set(sizes)) < len(sizes):
        raise RequestError(f"a window is named twice in {list(sizes)}", field="options.window")
    if strategy != "full" and precision != "float32":
        raise RequestError(
            "strategy='incremental' works in float32 only; leave precision out", field="options.precision"
        )
    height, width = forward.x_NCHW.shape[-2:]
    windows = [Windows(height, width, size, stride) for size in sizes]
    sweep = _BatchSweep(forward, target_N, fill, score, strategy, precision, sum(map(len, windows)) * len(forward))
    drops = {each.window: sweep.drops(each) for each in windows}
    maps = {each.window: each.mean_map(drops[each.window]) for each in windows}
    options: dict[str, Any] = {"window": window, "stride": stride, "fill": fill, "score": score}
    options |= {"strategy": strategy, "precision": precision}
    meta = forward.meta(
        score,
        started=started,
        runtime=sweep.runtime,
        sweep=sweep.kinds,
        precision="half" if sweep.in_half else "",
        warnings=tuple(dict.fromkeys(sweep.warnings)),
    )
    values_NCHW = np.stack(list(maps.values())).mean(axis=0)[:, None]
    return forward.attribution("occlusion", values_NCHW, target_N, options, meta, sweep.extras(drops, maps))


class _SimilarityScorer:
    """Cosine similarity (N, 1) of images' embeddings to that of one image, for networks without classes."""

    def __init__(self, forward: Forward, image_1CHW: Tensor) -> None:
        self.name = forward.runtime
        self._forward, self._own_1D = forward, _unit(forward.outputs_of(image_1CHW))

    def logits(self, x_NCHW: Tensor | Floats) -> Floats:
        return np.asarray(_unit(self._forward.outputs_of(x_NCHW)) @ self._own_1D.T)


def _unit(embedding_ND: Floats) -> Floats:
    length_N1 = np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    return np.asarray(embedding_ND / np.maximum(length_N1, np.finfo(np.float32).tiny))


@dataclass
class _BatchSweep:
    """The sweeps of all rows, one after another; collects the backends used, warnings and deviations."""

    forward: Forward
    target_N: Ints
    fill: float
    score: ScoreKind
    strategy: Strategy
    precision: Precision
    total: int

    def __post_init__(self) -> None:
        self.warnings: list[str] = []
        self._deviation_N = np.zeros(len(self.forward))
        self._error_N = np.zeros(len(self.forward))
        self._drop_deviation_N = np.zeros(len(self.forward))
        self._done = 0
        self.in_half = False
        self._used: dict[tuple[str, str], None] = {}  # (name, kind) of backends, in order of first use

    @property
    def runtime(self) -> str:
        return ", ".join(dict.fromkeys(name for name, _ in self._used))

    @property
    def kinds(self) -> str:
        return ", ".join(dict.fromkeys(kind for _, kind in self._used))

    def drops(self, windows: Windows) -> Floats:
        """What the targets' scores lose with each window hidden in turn; (N, R, Q)."""
        self._error_N[:] = 0.0
        drop_NRQ = self.forward.scores(self.target_N, self.score)[:, None, None] - self._scores(windows)
        largest_N = np.abs(drop_NRQ).max((1, 2))
        deviation_N = self._error_N / np.where(largest_N > 0, largest_N, 1.0)
        self._drop_deviation_N = np.maximum(self._drop_deviation_N, deviation_N)
        if deviation_N.max() > _NOTICEABLE:
            self.warnings.append(
                f"half precision is off by about {deviation_N.max():.0%} of the largest drop; use precision='float32'"
            )
        return drop_NRQ

    def _scores(self, windows: Windows) -> Floats:
        """The targets' scores; (N, R, Q)."""
        if not self.forward.spec.classes:
            return np.stack([self._similarities(n, windows) for n in range(len(self.forward))])
        # A softmax is of all classes, so the sweep makes it; a sigmoid is of the target's own logit.
        activation = self.forward.spec.activation
        by_itself = self.score == "probability" and activation != "softmax"
        kind: ScoreKind = "logit" if by_itself else self.score
        requests = [
            SweepRequest(x_CHW, int(target), windows, self.fill, kind)
            for x_CHW, target in zip(self.forward.x_NCHW, self.target_N, strict=True)
        ]
        score_NRQ = self._sweeps(windows, requests)
        return scores_of(score_NRQ, "probability", activation) if by_itself else score_NRQ

    def _similarities(self, n: int, windows: Windows) -> Floats:
        """(R, Q): cosine similarity of the image with each window filled to the image itself, in embeddings."""
        scorer = _SimilarityScorer(self.forward, self.forward.x_NCHW[n : n + 1])
        request = SweepRequest(self.forward.x_NCHW[n], 0, windows, self.fill, "logit")
        backend = BatchedSweep(scorer)
        self._note(backend, "")
        return backend.scores(request, self._advance)

    def _sweeps(self, windows: Windows, requests: Sequence[SweepRequest]) -> Floats:
        if self.precision == "half":
            return np.stack([self._half(n, request) for n, request in enumerate(requests)])
        # Chosen once for all rows: after each run another backend may be the fastest.
        backend, note = self.forward.sweeps.require(windows, self.strategy)
        self._note(backend, note)
        return np.stack([self.forward.sweeps.run(backend, request, self._advance) for request in requests])

    def extras(self, drops: Mapping[int, Floats], maps: Mapping[int, Floats]) -> dict[str, Floats]:
        extras: dict[str, Floats] = {}
        if self.precision == "half":
            extras |= {"half_deviation_N": self._deviation_N, "half_drop_deviation_N": self._drop_deviation_N}
        if len(drops) == 1:
            return extras | {"grid_NRQ": next(iter(drops.values()))}
        for size, drops_NRQ in drops.items():
            extras |= {f"grid_{size}_NRQ": drops_NRQ, f"map_{size}_NHW": maps[size]}
        return extras

    def _half(self, n: int, request: SweepRequest) -> Floats:
        result = half_sweep(self.forward.sweeps, request, self._advance)
        self._note(result.backend, result.warning)
        self._deviation_N[n] = max(self._deviation_N[n], result.deviation)
        self._error_N[n] = result.error
        return result.score_RQ

    def _note(self, backend: SweepBackend, warning: str) -> None:
        self._used[backend.name, backend.kind] = None
        self.in_half |= backend.precision == "half"
        self.warnings += [warning] if warning else []

    def _advance(self, windows: int) -> None:
        self._done += windows
        self.forward.on_step(Step("occlusion", self._done, self.total))
