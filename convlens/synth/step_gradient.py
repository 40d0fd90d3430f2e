"""A step's loss and its gradient, on a GPU replayed as a CUDA graph: many small kernels, launched at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convlens.runtime.cuda_graphs import capture
from convlens.runtime.memory import MAYBE_OUT_OF_MEMORY, free_gpu_cache, is_out_of_memory

_log = logging.getLogger(__name__)

_BEFORE_CAPTURE = 2  # calls of one shape that are launched kernel by kernel; a single one would not pay
_AGREEMENT = 1e-2  # of the largest value; convolutions in bfloat16 add up in no fixed order


class StepGradient:
    """``function(x, *more) -> (total (), parts)``, called as ``(total, parts, d total / d x)``, all detached.

    The function may depend on nothing but its arguments and on tensors that stay where they are, for a replay runs none
    of its Python. Tensors of ``more`` may lie on the CPU. On a GPU it is captured when the same shapes come for the
    third time; the first replay, of the call after that, is compared with the function itself, and where they differ no
    other is made.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._function = function
        self._shapes: object = None
        self._calls = 0
        self._captured: _Captured | None = None
        self._possible = True

    def __call__(self, x: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs = x.detach(), *(each.to(x.device, non_blocking=True) for each in more)
        if not (self._possible and _replays(x.device)):
            return _launched(self._function, *inputs)
        shapes = [(tuple(each.shape), each.dtype) for each in inputs]
        if shapes != self._shapes:
            self._shapes, self._calls, self._captured = shapes, 0, None
        self._calls += 1
        if self._captured is not None:
            return self._replayed(self._captured, inputs)
        if self._calls > _BEFORE_CAPTURE:
            self._capture(inputs)
        return _launched(self._function, *inputs)

    def _replayed(self, captured: _Captured, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        found = captured(inputs)
        if captured.compared:
            return found
        captured.compared = True
        wanted = _launched(self._function, *inputs)
        if not all(map(_agree, found, wanted)):
            self._give_up("its replay differs")
        return wanted

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        try:
            self._captured = _Captured(self._function, inputs)
        except MAYBE_OUT_OF_MEMORY as error:
            self._give_up("out of memory" if is_out_of_memory(error) else str(error))
            free_gpu_cache()

    def _give_up(self, reason: str) -> None:
        self._possible, self._captured = False, None
        _log.warning("steps are launched kernel by kernel, since they cannot be captured as a CUDA graph: %s", reason)


@dataclass
class _Captured:
    function: Callable[..., tuple[Tensor, Tensor]]
    inputs: tuple[Tensor, ...]
    compared: bool = False

    def __post_init__(self) -> None:
        self.inputs = tuple(each.clone() for each in self.inputs)
        self._graph, self._outputs = capture(lambda: _launched(self.function, *self.inputs))

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given, non_blocking=True)
        self._graph.replay()
        # Copies: the next replay overwrites what the graph gave.
        total, parts, gradient = (each.clone() for each in self._outputs)
        return total, parts, gradient


def _replays(device: torch.device) -> bool:
    return device.type == "cuda"


def _launched(function: Callable[..., tuple[Tensor, Tensor]], *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = inputs[0].detach().requires_grad_()
    with torch.enable_grad():
        total, parts = function(x, *inputs[1:])
    (gradient,) = torch.autograd.grad(total, x)
    return total.detach(), parts.detach(), gradient


def _agree(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= _AGREEMENT * wanted.abs().max())
