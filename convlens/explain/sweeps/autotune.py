"""Which backend makes a sweep: the fastest one, by the time that each took when it was last used.

Half precision is used only where it is faster, and states how far its scores are from full precision.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain.sweeps.backends import OnWindows, SweepBackend, SweepRequest
from convlens.explain.sweeps.windows import Windows
from convlens.instrument import copy_of, memory_format
from convlens.models import is_scripted
from convlens.runtime.graph_contract import Precision, Strategy
from convlens.runtime.memory import MAYBE_OUT_OF_MEMORY, free_gpu_cache, is_out_of_memory
from convlens.types import Floats, no_op

_SET_UP_RUNS = 2  # on a GPU: kernels are compiled, then captured
_TRIED = 8  # windows that a backend is timed on: enough for a run on each core
# Windows of a sweep in half precision that are scored in full precision: of 169 a fortieth, at twice the cost of half.
_IN_FULL = 4
_SAMPLE = 3  # of them at least, in half precision as well, to be compared


class SweepAutotuner:
    """The sweep backends that one model has; safe to use from several threads.

    ``backends`` come in the order in which they are expected to be fast. Each that supports the windows is used until
    its time is known, in that order; from then on the one that took least time per window when it was last used.
    """

    # Only sweeps that somebody asked for are timed, none is made for the timing alone. A backend that has become slow
    # loses its place at its next use.

    def __init__(self, backends: Sequence[SweepBackend]) -> None:
        self.backends = tuple(backends)
        # By backend and window size; the work per window hardly depends on anything else.
        self._seconds: dict[tuple[SweepBackend, int], float] = {}

    def choose(
        self, windows: Windows, *, strategy: Strategy = "full", precision: Precision = "float32"
    ) -> SweepBackend | None:
        """The backend to use now, or None where none serves that strategy and precision."""
        candidates = self.candidates(windows, strategy=strategy, precision=precision)
        untried = [backend for backend in candidates if (backend, windows.window) not in self._seconds]
        if untried:
            return untried[0]
        return min(candidates, key=lambda backend: self._seconds[backend, windows.window], default=None)

    def candidates(
        self, windows: Windows, *, strategy: Strategy = "full", precision: Precision = "float32"
    ) -> list[SweepBackend]:
        """The backends that serve this strategy and precision, those that are expected to be fastest first."""
        return [
            backend
            for backend in self.backends
            if strategy in backend.strategies and backend.precision == precision and backend.supports(windows)
        ]

    def require(self, windows: Windows, strategy: Strategy) -> tuple[SweepBackend, str]:
        """The full-precision backend to use now, and a note for the user.

        A graph exported for ``incremental`` sweeps may state in its note that a full sweep is faster; then any backend
        of full sweeps may be chosen. RequestError for ``incremental`` without a graph of these windows.
        """
        backend = self.choose(windows, strategy=strategy)
        if backend is None:
            raise RequestError(
                f"strategy={strategy!r} needs a graph of these windows; write one by `convlens export occlusion "
                f"--strategy {strategy} --window {windows.window} --stride {windows.stride}` and give it by --graphs",
                field="options.strategy",
            )
        if strategy == "full":
            return backend, ""
        return (self.choose(windows) or backend) if "full" in backend.strategies else backend, backend.note

    @property
    def reference(self) -> SweepBackend:
        """A backend that scores single windows in full precision, to compare others with."""
        return next(each for each in self.backends if (each.kind, each.precision) == ("batches", "float32"))

    def seconds_per_window(self, backend: SweepBackend, windows: Windows) -> float | None:
        """When this backend was last used, or tried, with windows of this size; None where it never was."""
        return self._seconds.get((backend, windows.window))

    def try_once(self, backend: SweepBackend, request: SweepRequest, positions: Sequence[int]) -> float:
        """``seconds_per_window``; a backend that was never used is tried on the windows at those positions."""
        key = backend, request.windows.window
        if key not in self._seconds:
            self._seconds[key] = _tried(backend, request, positions)
        return self._seconds[key]

    def run(
        self, backend: SweepBackend, request: SweepRequest, on_windows: OnWindows, *, first: int | None = None
    ) -> Floats:
        """Scores (R, Q) by this backend, or (first,) of so many windows alone; remembers how long it took.

        Where memory does not suffice for a graph of the whole sweep, ``reference`` makes it: batches need less.
        """
        # On a GPU the first sweep compiles and the second captures; either would make the fastest backend the slowest.
        steady, started = backend.is_set_up(request), time.perf_counter()
        try:
            if first is None:
                scores = backend.scores(request, on_windows)
            else:
                scores = backend.scores_at(request, range(first), on_windows)
        except MAYBE_OUT_OF_MEMORY as error:
            in_full = backend.precision == self.reference.precision
            if not is_out_of_memory(error) or backend.kind == "batches" or not in_full:
                raise
        else:
            if steady:
                self._seconds[backend, request.windows.window] = (time.perf_counter() - started) / scores.size
            return scores
        free_gpu_cache()
        return self.reference.scores(request, on_windows)


@dataclass(frozen=True)
class HalfPrecisionScorer:
    """The network in float16 on a GPU, in bfloat16 on the CPU; its logits come back as float32.

    It works on a copy made at first use: the model itself keeps its precision.
    """

    module: nn.Module
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.device.type == "cuda" else torch.bfloat16

    @property
    def name(self) -> str:
        return f"torch:{str(self.dtype).removeprefix('torch.')}"

    def logits(self, x_NCHW: Tensor | Floats) -> Floats:
        """Logits (N, K), float32."""
        x = torch.as_tensor(x_NCHW).to(device=self.device, dtype=self.dtype, memory_format=memory_format(self.module))
        with torch.no_grad():
            try:
                logits_NK: Tensor = self._copy(x)
            except RuntimeError as error:
                if is_out_of_memory(error) or not is_scripted(self.module):
                    raise
                raise UnsupportedModelError(
                    "this network is scripted with weights that cannot be narrowed, as torch.jit.freeze leaves them; "
                    "use precision=float32",
                    field="options.precision",
                ) from error
            return np.asarray(logits_NK.float().cpu().numpy())

    @functools.cached_property
    def _copy(self) -> nn.Module:
        return copy_of(self.module).to(self.dtype)


@dataclass(frozen=True)
class HalfSweep:
    """Scores (R, Q) and the backend that made them.

    ``error`` is the largest |half - full| of all windows, estimated from a sample of them, and ``deviation`` that error
    relative to the sample's largest |full|. Both are 0 where full precision was used; then ``warning`` says why.
    """

    score_RQ: Floats
    backend: SweepBackend
    deviation: float = 0.0
    error: float = 0.0
    warning: str = ""


def half_sweep(sweeps: SweepAutotuner, request: SweepRequest, on_windows: OnWindows) -> HalfSweep:
    """One image's sweep in half precision, or in full precision where half is, or in a sample proves, no faster.

    What the sampled scores differ by on average is added to all: rounded weights move them all alike, which would
    otherwise be seen in every drop.
    """
    windows = request.windows
    seconds = functools.partial(sweeps.try_once, request=request, positions=_spread(len(windows), _TRIED))
    half, full = min(sweeps.candidates(windows, precision="half"), key=seconds, default=None), sweeps.choose(windows)
    assert full is not None, "every model can be swept in batches"
    warning = "half precision is not available here" if half is None else ""
    if half is not None and (half_s := seconds(half)) >= (full_s := seconds(full)):
        warning = f"half precision is no faster here ({half_s * 1e3:.1f} against {full_s * 1e3:.1f} ms per window)"
    if half is None or warning:
        score_RQ = sweeps.run(full, request, on_windows)
        return HalfSweep(score_RQ, full, warning=f"{warning}: the sweep ran in float32")
    return _compared(sweeps, half, request, on_windows)


def _compared(sweeps: SweepAutotuner, half: SweepBackend, request: SweepRequest, on_windows: OnWindows) -> HalfSweep:
    """The sweep in half precision, corrected by a sample in full precision, which also tells the deviation."""
    windows = len(request.windows)
    # A last run that is not full costs as much as a full one. What would fill it to half at most costs less in full
    # precision, beside the sample, and is exact.
    rest = windows % half.fixed_run if 2 * (windows % half.fixed_run) <= half.fixed_run < windows else 0
    first = windows - rest
    positions = _spread(first, max(_SAMPLE, _IN_FULL - rest))
    half_P = sweeps.run(half, request, on_windows, first=first if rest else None).reshape(-1)
    full_P = sweeps.reference.scores_at(request, [*positions, *range(first, windows)])
    if rest:
        on_windows(rest)
    offset, error = _offset_and_error(full_P[: len(positions)] - half_P[positions], windows)
    scores = np.concatenate([half_P + offset, full_P[len(positions) :]])
    largest = float(np.abs(full_P).max()) or 1.0
    return HalfSweep(scores.reshape(request.windows.grid), half, error / largest, error)


def _spread(windows: int, count: int) -> list[int]:
    """Up to ``count`` positions, one in the middle of each of as many equal parts."""
    return [int(position) for position in np.unique((np.arange(count) + 0.5) * windows // count)]


def _offset_and_error(difference_P: Floats, windows: int) -> tuple[float, float]:
    """The mean difference, and the largest to be expected, once that is taken away, of so many ``windows``.

    As of normally distributed ones: of 169, 2.97 standard deviations. Real sweeps' largest was at 2 to 5, median 3.3.
    """
    count = len(difference_P)
    if count == 1:
        return 0.0, float(np.abs(difference_P).max())
    offset = float(difference_P.mean())
    if count == windows:
        return offset, float(np.abs(difference_P - offset).max())
    return offset, float(difference_P.std(ddof=1)) * NormalDist().inv_cdf(1 - 1 / (2 * windows))


def _tried(backend: SweepBackend, request: SweepRequest, positions: Sequence[int]) -> float:
    """Seconds per window."""
    if not backend.is_set_up(request):
        # All windows: a few of them would tell nothing of so many at once.
        for _ in range(_SET_UP_RUNS):
            backend.scores(request, no_op)
        return _seconds(lambda: backend.scores(request, no_op)) / len(request.windows)
    backend.scores_at(request, positions)  # a first run also sets up memory and kernels, so the later ones count
    # The better of two, since it is remembered. A graph computes all windows whichever are asked for.
    seconds = min(_seconds(lambda: backend.scores_at(request, positions)) for _ in range(2))
    return seconds / (len(positions) if backend.kind == "batches" else len(request.windows))


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
