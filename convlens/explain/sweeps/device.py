"""Occlusion sweeps on the device that holds the network: windows made there, scores gathered there, one copy back."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from convlens.errors import ModelError
from convlens.explain.sweeps.backends import OnWindows, SweepRequest
from convlens.explain.sweeps.windows import Windows
from convlens.instrument import (
    Convolution,
    FoldedBatchNorms,
    WatchedConvolutions,
    copy_of,
    fast_convolutions,
    float32_flags,
    memory_format,
)
from convlens.runtime.cuda_graphs import capture
from convlens.runtime.graph_contract import Precision, Strategy
from convlens.runtime.memory import MAPPED_BYTES, MAYBE_OUT_OF_MEMORY, free_gpu_cache, is_out_of_memory
from convlens.types import Floats, ScoreKind, no_op

# Images at a time. All 169 of the usual sweep at once were fastest on an H200 (169, 85, 43: 11.4, 12.3, 16.0 ms for the
# default model with TF32). On two CPU cores 4 to 8 were, as long as no tensor reaches MAPPED_BYTES.
BATCH, CPU_BATCH = 256, 8
_AGREEMENT = 5e-3  # folding moves scores by about 1e-6, in TF32 by 1e-3
_WORTH_FOLDING = 16  # windows; to find out what can be folded takes about two
_Corner = tuple[int, int]
_Inputs = tuple[Tensor, Tensor, Tensor]  # image (C, H, W), fill (), target class (1,)
MOST_CAPTURED = 4


@dataclass(frozen=True)
class HiddenCopies:
    """``x_CHW`` once for each corner (B, 2), with a square window filled there."""

    window: int
    channels_last: bool

    def __call__(self, x_CHW: Tensor, corners_B2: Tensor, fill: Tensor) -> Tensor:
        height, width = x_CHW.shape[-2:]
        rows_BH = _inside(torch.arange(height, device=x_CHW.device), corners_B2[:, :1], self.window)
        columns_BW = _inside(torch.arange(width, device=x_CHW.device), corners_B2[:, 1:], self.window)
        hidden_B1HW = rows_BH[:, None, :, None] & columns_BW[:, None, None, :]
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.where(hidden_B1HW, fill, x_CHW[None]).contiguous(memory_format=layout)


class DeviceSweep:
    """The whole sweep as one stream of work on the network's device, in as few batches as memory allows.

    Batch norms are folded into the weights of convolutions, anew for each sweep, so that it sees weights as they are.
    On a GPU a sweep of the same windows is captured as a CUDA graph when it is met for the second time. ``precision``
    ``half`` works on a copy of the network: float16 on a GPU, bfloat16 on a CPU.
    """

    kind, note = "batches", ""
    strategies: tuple[Strategy, ...] = ("full",)
    fixed_run = 1

    def __init__(
        self, module: nn.Module, device: torch.device, *, channels_last: bool = True, precision: Precision = "float32"
    ) -> None:
        # By a weak reference: the sweeps of a network are kept as long as its module lives, and would keep it.
        self._module, self._device, self._channels_last = weakref.ref(module), device, channels_last
        self.precision: Precision = precision
        self.name = "torch" if precision == "float32" else f"torch:{str(self._half).removeprefix('torch.')}"
        self._batch = CPU_BATCH if device.type == "cpu" else BATCH
        self._captured: OrderedDict[Hashable, _CapturedSweep] = OrderedDict()
        self._met: set[Hashable] = set()
        self._lock = threading.Lock()

    def supports(self, windows: Windows) -> bool:
        return True

    def scores(self, request: SweepRequest, on_windows: OnWindows) -> Floats:
        return self._scores(request, request.windows.corners, on_windows).reshape(request.windows.grid)

    def scores_at(self, request: SweepRequest, positions: Sequence[int], on_windows: OnWindows = no_op) -> Floats:
        corners = request.windows.corners
        return self._scores(request, [corners[position] for position in positions], on_windows)

    def is_set_up(self, request: SweepRequest) -> bool:
        sweep = self._sweep(request)
        return (
            not self._capturable(len(request.windows))
            or self._key(request, sweep, request.windows.corners) in self._captured
        )

    def _scores(self, request: SweepRequest, corners: Sequence[_Corner], on_windows: OnWindows) -> Floats:
        sweep = self._sweep(request)
        x_CHW = request.x_CHW.detach().to(device=self._device, dtype=self._dtype(request))
        fill = torch.tensor(request.fill, dtype=x_CHW.dtype, device=self._device)
        inputs = x_CHW, fill, torch.tensor([request.target], device=self._device)
        corners_W2 = torch.tensor(corners, device=self._device)
        captured = None
        if self._capturable(len(corners)):
            captured = self._find(self._key(request, sweep, corners), sweep, inputs, corners_W2)
        if captured is None:
            foldable = self._device.type == "cpu" and self.precision == "float32" and len(corners) >= _WORTH_FOLDING
            in_batches = self._folded_in_batches if foldable else self._in_batches
            score_W = in_batches(sweep, inputs, corners_W2, on_windows).cpu()
        else:
            with self._lock:
                score_W = captured(inputs)
            score_W = score_W.cpu()
            on_windows(len(corners))
        if not torch.isfinite(score_W).all():
            raise ModelError("the model's scores are NaN or infinite for this image; its weights may be damaged")
        return np.asarray(score_W.numpy())

    def _sweep(self, request: SweepRequest) -> _Sweep:
        bears_it = memory_format(self._own_module) == torch.channels_last
        copies = HiddenCopies(request.windows.window, self._channels_last and bears_it)
        return _Sweep(self._network, copies, request.score)

    def _folded_in_batches(self, sweep: _Sweep, inputs: _Inputs, corners_W2: Tensor, on_windows: OnWindows) -> Tensor:
        first, convolutions, largest_bytes = _watched(sweep, inputs, corners_W2)
        # A larger batch than memory allowed before is not tried again.
        self._batch = min(self._batch, max(1, MAPPED_BYTES // (largest_bytes + 1)))
        folded_weights = self._folded_weights(convolutions)
        folded = replace(sweep, network=partial(self._folded_network, lambda: folded_weights))
        head_W2, rest_W2 = corners_W2[: self._batch], corners_W2[self._batch :]
        score_W = self._in_batches(folded, inputs, head_W2, no_op)
        # A network that takes another way for several images was not watched on that.
        if not _agree(score_W[:1], first):
            return self._in_batches(sweep, inputs, corners_W2, on_windows)
        on_windows(len(head_W2))
        if not len(rest_W2):
            return score_W
        return torch.cat([score_W, self._in_batches(folded, inputs, rest_W2, on_windows)])

    def _in_batches(self, sweep: _Sweep, inputs: _Inputs, corners_W2: Tensor, on_windows: OnWindows) -> Tensor:
        parts, done = [], 0
        while done < len(corners_W2):
            corners_B2 = corners_W2[done : done + self._batch]
            try:
                parts.append(sweep(*inputs, corners_B2))
            except MAYBE_OUT_OF_MEMORY as error:
                if self._batch == 1 or not is_out_of_memory(error):
                    raise
                halved = True
            else:
                halved = False
            if halved:  # out here, where the failed try's tensors are gone with its traceback
                self._batch = max(1, min(self._batch, len(corners_B2)) // 2)
                free_gpu_cache()
                continue
            done += len(corners_B2)
            on_windows(len(corners_B2))
        return torch.cat(parts)

    # --- the same sweep again, as a CUDA graph ------------------------------------------------------------------------

    def _capturable(self, windows: int) -> bool:
        return self._device.type == "cuda" and windows <= self._batch

    def _key(self, request: SweepRequest, sweep: _Sweep, corners: Sequence[_Corner]) -> Hashable:
        kind = self._dtype(request), sweep.copies, sweep.score
        return tuple(request.x_CHW.shape), *kind, tuple(corners), float32_flags()

    def _find(self, key: Hashable, sweep: _Sweep, inputs: _Inputs, corners_W2: Tensor) -> _CapturedSweep | None:
        """The captured sweep of that key, captured now where it is met for the second time."""
        with self._lock:
            if key not in self._met:
                self._met.add(key)
                return None
            if key not in self._captured:
                try:
                    self._captured[key] = self._capture(sweep, inputs, corners_W2)
                except MAYBE_OUT_OF_MEMORY:
                    self._met.discard(key)
                    free_gpu_cache()
                    return None
                while len(self._captured) > MOST_CAPTURED:
                    self._captured.popitem(last=False)
            self._captured.move_to_end(key)
            return self._captured[key]

    def _capture(self, sweep: _Sweep, inputs: _Inputs, corners_W2: Tensor) -> _CapturedSweep:
        if self.precision == "float32" and len(corners_W2) >= _WORTH_FOLDING:
            first, convolutions, _ = _watched(sweep, inputs, corners_W2)
            # Weights are folded within the graph, and so at each replay: it sees them as they are then.
            network = partial(self._folded_network, lambda: self._folded_weights(convolutions))
            captured = _CapturedSweep(replace(sweep, network=network), inputs, corners_W2)
            if _agree(captured(inputs)[:1], first):
                return captured
        return _CapturedSweep(sweep, inputs, corners_W2)

    # --- the network --------------------------------------------------------------------------------------------------

    @property
    def _half(self) -> torch.dtype:
        return torch.float16 if self._device.type == "cuda" else torch.bfloat16

    def _dtype(self, request: SweepRequest) -> torch.dtype:
        return request.x_CHW.dtype if self.precision == "float32" else self._half

    @cached_property
    def _half_copy(self) -> nn.Module:
        return copy_of(self._own_module).to(self._half)

    @property
    def _own_module(self) -> nn.Module:
        module = self._module()
        assert module is not None, "whoever asks for a sweep holds the network"
        return module

    def _network(self, x_NCHW: Tensor) -> Tensor:
        module = self._own_module if self.precision == "float32" else self._half_copy
        with torch.no_grad(), fast_convolutions(self._device):
            logits_NK: Tensor = module(x_NCHW)
        return logits_NK

    def _folded_weights(self, convolutions: Sequence[Convolution]) -> FoldedBatchNorms:
        return FoldedBatchNorms(convolutions, memory_format(self._own_module))

    def _folded_network(self, folded: Callable[[], FoldedBatchNorms], x_NCHW: Tensor) -> Tensor:
        with torch.no_grad(), folded().mode():
            return self._network(x_NCHW)


@dataclass(frozen=True)
class _Sweep:
    network: Callable[[Tensor], Tensor]
    copies: HiddenCopies
    score: ScoreKind

    def __call__(self, x_CHW: Tensor, fill: Tensor, target: Tensor, corners_B2: Tensor) -> Tensor:
        """The target's score of each copy, (B,), on the device; NaN where any score of that copy is not finite."""
        logits_BK = self.network(self.copies(x_CHW, corners_B2, fill))
        logits_BK = logits_BK.float() if logits_BK.dtype in (torch.float16, torch.bfloat16) else logits_BK
        score_B = logits_BK.index_select(1, target)[:, 0]
        if self.score == "probability":
            score_B = (score_B - logits_BK.logsumexp(1)).exp()
        return torch.where(torch.isfinite(logits_BK).all(1), score_B, float("nan"))


class _CapturedSweep:
    def __init__(self, sweep: _Sweep, inputs: _Inputs, corners_W2: Tensor) -> None:
        self._inputs = inputs[0].clone(), inputs[1].clone(), inputs[2].clone()
        self._corners = corners_W2.clone()
        self._graph, self._score_W = capture(lambda: sweep(*self._inputs, self._corners))

    def __call__(self, inputs: _Inputs) -> Tensor:
        for held, value in zip(self._inputs, inputs, strict=True):
            held.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._score_W.clone()


def _watched(sweep: _Sweep, inputs: _Inputs, corners_W2: Tensor) -> tuple[Tensor, tuple[Convolution, ...], int]:
    """The first window's score (1,), the convolutions that gave it, and the size of the largest tensor on the way."""
    watched = WatchedConvolutions()
    with watched:
        first = sweep(*inputs, corners_W2[:1])
    return first, watched.convolutions, watched.largest_bytes


def _agree(score_B: Tensor, expected_B: Tensor) -> bool:
    return bool(torch.allclose(score_B, expected_B, rtol=_AGREEMENT, atol=_AGREEMENT, equal_nan=True))


def _inside(pixels: Tensor, starts_B1: Tensor, window: int) -> Tensor:
    """(B, pixels): whether the window that starts there covers the pixel."""
    return (pixels >= starts_B1) & (pixels < starts_B1 + window)


def device_sweeps(module: nn.Module, device: torch.device) -> tuple[DeviceSweep, ...]:
    """The network's sweeps on its GPU, in both layouts and in half precision."""
    # Which layout is faster depends on network and precision: in strict float32 on an H200 the default model took
    # 17.9 ms channels last and 19.3 otherwise, ResNet-50 56 and 50.
    return (
        DeviceSweep(module, device),
        DeviceSweep(module, device, channels_last=False),
        DeviceSweep(module, device, precision="half"),
    )
