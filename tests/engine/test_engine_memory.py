"""Memory that runs out: smaller batches once, then an error for that row alone, and nothing that is held on to."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import Tripwire, counted, engine, replied, request, values
from torch import Tensor, nn

from convlens.engine import executor
from convlens.errors import ConvLensError, OutOfMemoryError
from convlens.runtime.memory import is_out_of_memory

SUPPORT = Path(__file__).parents[1] / "support"
SWEEP = {"method": "occlusion", "options": {"window": 8, "stride": 4}}
SMOOTH = {"method": "smoothgrad", "options": {"samples": 20, "seed": 3}}
STEPS = {"method": "integrated_gradients", "options": {"steps": 20}}


class Room(nn.Module):
    """A device with room for so many pictures at a time; it keeps an eye on what did not fit."""

    def __init__(self, most: int, error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("no room")) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.failed: list[weakref.ref[Tensor]] = []
        self.held = 0

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.held += sum(failed() is not None for failed in self.failed)
        if len(x_NCHW) > self.most:
            x_NCHW = x_NCHW * 1.0  # one that only the failed try knows
            self.failed.append(weakref.ref(x_NCHW))
            raise self.error()
        return x_NCHW


ERRORS: dict[str, Callable[[], Exception]] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "torch on the CPU": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "numpy": lambda: MemoryError("Unable to allocate 7.45 GiB"),
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "ONNX Runtime": lambda: OutOfMemoryError("onnxruntime ran out of memory: Failed to allocate memory"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("one", [SWEEP, SMOOTH, STEPS], ids=lambda one: one["method"])
def test_work_too_large_for_the_memory_is_done_in_batches_of_a_quarter(
    one: dict[str, Any], error: Callable[[], Exception]
) -> None:
    room = Room(5, error)
    requests = [request(0, methods=[one]), request(1, methods=["saliency"])]
    answers = engine(counted(room)).run(requests)
    for answer, expected, name in zip(answers, engine().run(requests), (one["method"], "saliency"), strict=True):
        np.testing.assert_allclose(values(answer, name), values(expected, name), rtol=1e-4, atol=1e-6)
    # 8 windows, then 4; 8 samples or steps, then 2.
    assert len(room.failed) == 1, "what did not fit is not tried again"
    assert room.held == 0, "the failed try's tensors are gone before the next try"


@pytest.mark.parametrize("one", [SMOOTH, STEPS], ids=lambda one: one["method"])
def test_what_does_not_fit_by_a_quarter_either_is_an_error_of_that_row_alone(one: dict[str, Any]) -> None:
    room = Room(1)
    requests = [request(0, methods=["saliency"]), request(1, methods=["saliency", one]), request(2), request(3)]
    answers = engine(counted(room)).run(requests)
    assert type(answers[1]) is OutOfMemoryError
    assert answers[1].status == 507
    assert "ask for less at a time" in answers[1].message
    for n in (0, 2, 3):
        replied(answers[n])
    assert room.held == 0


def test_a_sweep_is_answered_window_by_window_where_there_is_room_for_one_alone() -> None:
    sweep = request(0, methods=[SWEEP])
    (actual,) = engine(counted(Room(1))).run([sweep])
    (expected,) = engine().run([sweep])
    np.testing.assert_allclose(values(actual, "occlusion"), values(expected, "occlusion"), atol=1e-6)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_that_is_kept_keeps_no_tensor_of_the_failed_try(error: Callable[[], Exception]) -> None:
    room = Room(0, error)
    answers = engine(counted(room)).run([request(0), request(1, methods=["saliency"]), request(2)])
    assert all(isinstance(answer, OutOfMemoryError) for answer in answers)
    gc.disable()  # what only the collector would find counts as held
    try:
        assert [failed() for failed in room.failed] == [None] * len(room.failed)
    finally:
        gc.enable()


def test_memory_is_given_back_when_nothing_holds_the_failed_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps a traceback, and so its frames, until the ``with`` that catches the error has ended."""
    room, held = Room(0), list[int]()
    monkeypatch.setattr(
        executor, "free_gpu_cache", lambda: held.append(sum(failed() is not None for failed in room.failed))
    )
    (answer,) = engine(counted(room)).run([request(0)])
    assert isinstance(answer, OutOfMemoryError)
    assert held == [0]


def test_what_gradients_need_is_let_go_before_a_sweep_begins() -> None:
    alive: list[bool] = []

    class Remembered(torch.autograd.Function):
        """Leaves something in the recorded graph that can be watched."""

        @staticmethod
        def forward(ctx: Any, x_NCHW: Tensor) -> Tensor:
            ctx.kept = Kept()
            graphs.append(weakref.ref(ctx.kept))
            return x_NCHW.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    class Kept:
        pass

    def watched(x_NCHW: Tensor, _: Tensor) -> Tensor:
        if x_NCHW.requires_grad and torch.is_grad_enabled():
            return Remembered.apply(x_NCHW)
        alive.extend(graph() is not None for graph in graphs)
        return x_NCHW

    graphs: list[weakref.ref[Kept]] = []
    (answer,) = engine(counted(Tripwire(watched))).run([request(0, methods=[SWEEP, "saliency"])])
    assert [one.method for one in replied(answer).explanations] == ["occlusion", "saliency"]
    assert alive
    assert not any(alive)


def test_other_faults_are_not_taken_for_a_lack_of_memory() -> None:
    module = counted(Room(3, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    (answer,) = engine(module).run([request(0, methods=[SMOOTH])])
    assert type(answer) is ConvLensError
    assert len(module.faults.failed) == 1, "and not tried again with less"
    assert not is_out_of_memory(RuntimeError("allocator of another kind"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))


def test_what_onednn_says_without_room_for_a_layer_is_a_lack_of_memory() -> None:
    """Seen under a limit on the address space, as in pytorch#55884 for images that were too large."""
    assert is_out_of_memory(RuntimeError("could not create a primitive"))


def test_the_backward_pass_may_run_out_of_memory_as_well() -> None:
    def run_out(x_NCHW: Tensor, _: Tensor) -> Tensor:
        def check(grad: Tensor) -> None:
            if len(grad) > 4:
                raise torch.OutOfMemoryError("no room")

        if x_NCHW.requires_grad and torch.is_grad_enabled():
            x_NCHW = x_NCHW * 1.0
            x_NCHW.register_hook(check)
        return x_NCHW

    both = request(0, methods=[SMOOTH, STEPS])
    (actual,), (expected,) = engine(counted(Tripwire(run_out))).run([both]), engine().run([both])
    for name in ("smoothgrad", "integrated_gradients"):
        np.testing.assert_allclose(values(actual, name), values(expected, name), rtol=1e-4, atol=1e-6)


# --- with memory that is really short ---------------------------------------------------------------------------------

REAL = """
import resource, sys
import numpy as np, torch
from engines import counted, engine, request, values, replied

class Wide(torch.nn.Module):
    '''Nothing to the scores, but 8 MB of activations for every picture, and 64 MB where a gradient is wanted.'''
    def __init__(self):
        super().__init__()
        self.wide = torch.nn.ModuleList(torch.nn.Conv2d(3, 3640, 1) for _ in range(8))
        with torch.no_grad():
            for layer in self.wide:
                layer.weight.zero_(), layer.bias.zero_()
    def forward(self, x):
        for layer in self.wide:
            x = x + layer(x).relu()[:, :3]
        return x

torch.set_num_threads(1)
live = engine(counted(Wide()).requires_grad_(False))
given = request(0, methods=[{methods}])
live.run([request(0, methods=["saliency"]), request(1), request(2)])  # whatever is set up once, threads included
alone = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (alone + {room} * 2**20, resource.RLIM_INFINITY))
short = live.run([given, request(1), request(2)])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
(plenty,) = live.run([given])
replied(short[1]), replied(short[2])
name = replied(plenty).explanations[0].id
if isinstance(short[0], Exception):
    print(short[0].status, type(short[0]).__name__)
else:
    np.testing.assert_allclose(values(short[0], name), values(plenty, name), rtol=1e-4, atol=1e-6)
    print("equal")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a process's memory can be limited on Linux only")
@pytest.mark.parametrize(
    ("one", "room", "expected"),
    [
        (SWEEP, 160, "equal"),  # 25 windows take 200 MB and more
        (SMOOTH, 300, "equal"),  # 8 samples take 512 MB and more, 2 take 128
        (SMOOTH, 40, "507 OutOfMemoryError"),
    ],
    ids=["windows", "samples", "not even a quarter"],
)
def test_real_allocations_that_fail_are_tried_with_less(one: dict[str, Any], room: int, expected: str) -> None:
    program = REAL.replace("{methods}", repr(one)).replace("{room}", str(room))
    # One arena: glibc reserves 64 MB of address space for each thread's own, which the limit would count.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(
        command, cwd=SUPPORT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.stdout.strip() == expected, ran.stderr[-2000:]
