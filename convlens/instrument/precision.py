"""In what torch multiplies float32: in float32, or in a shorter format that its flags allow; set, held and told here.

The flags belong to the whole process, and torch allows TF32 for convolutions on GPUs by default. A process of ours sets
them once (``use_precision``); the library sets them for the length of a pass and puts them back (``arithmetic``).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from convlens.errors import ModelError
from convlens.types import ArithmeticPrecision

Arithmetic = Literal["float32", "tf32", "bf16"]
"""What float32 operands are rounded to: nothing, 10 bits of mantissa, 7 bits. Sums are in float32."""

_cudnn: Any = torch.backends.cudnn  # Any: torch declares a part of their attributes only
_mkldnn: Any = torch.backends.mkldnn
_FLAGS: Mapping[str, tuple[Any, ...]] = {
    "cuda": (_cudnn.conv, _cudnn.rnn, torch.backends.cuda.matmul),
    "cpu": (_mkldnn.conv, _mkldnn.rnn, _mkldnn.matmul),
}


def require_precision(name: object) -> None:
    """ModelError for a name that is no precision; None, which leaves torch's flags alone, passes."""
    if name is not None and name not in get_args(ArithmeticPrecision):
        raise ModelError(f"no precision {name!r}; there are: {', '.join(get_args(ArithmeticPrecision))}")


def float32_arithmetic(device: torch.device) -> Arithmetic:
    """In what torch's flags, as they are now, let it multiply float32 on that device."""
    return _shortest({flag.fp32_precision for flag in _FLAGS.get(device.type, ())}, device)


def arithmetic_of(precision: ArithmeticPrecision | None, device: torch.device) -> Arithmetic:
    """In what a pass of that precision multiplies: None as torch's flags are now, TF32 only where the device has it."""
    if precision is None:
        return float32_arithmetic(device)
    return _shortest({"tf32"}, device) if precision == "tf32" and device.type == "cuda" else "float32"


def _shortest(allowed: set[str], device: torch.device) -> Arithmetic:
    if "bf16" in allowed:
        return "bf16"
    return "tf32" if "tf32" in allowed and _has_tf32(device) else "float32"


@functools.cache
def _has_tf32(device: torch.device) -> bool:
    if device.type == "cpu":  # oneDNN's rests on instructions that hardly any CPU has
        return bool(torch.cpu.get_capabilities().get("amx_fp16", False))
    if torch.version.cuda is None:  # what ONNX Runtime does on a GPU is not torch's arithmetic
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


# --- for a process of ours --------------------------------------------------------------------------------------------

_CHOSEN = threading.Event()


def use_precision(precision: ArithmeticPrecision) -> None:
    """Have this process multiply float32 so on every device: for processes that are ours, never on import.

    ``float32`` and ``half`` forbid every shorter format, ``tf32`` allows TF32 on GPUs. ModelError for another name.
    """
    require_precision(precision)
    # torch lets cuDNN round a convolution's operands to TF32: saliency then moves by up to 24 % of its largest value
    # (default model, H200, against the CPU).
    for device_type in _FLAGS:
        _set(device_type, tf32=precision == "tf32" and device_type == "cuda")
    _CHOSEN.set()


def precision_was_chosen() -> bool:
    """Whether this process called ``use_precision``."""
    return _CHOSEN.is_set()


# --- for one pass -----------------------------------------------------------------------------------------------------


@contextmanager
def arithmetic(precision: ArithmeticPrecision | None, device: torch.device) -> Iterator[None]:
    """Inside this ``with``, torch multiplies float32 on that device as ``precision`` says; None: as the process does.

    The flags are set only where they differ, and put back when the last pass that needs them ends. Passes of one
    arithmetic run together; one of another waits for them. ModelError for one of another inside, in the same thread.
    """
    if _TURNS.joined(precision, device):
        yield
        return
    _TURNS.enter(precision, device)
    try:
        yield
    finally:
        _TURNS.leave()


class _Turns:
    """Who is inside ``arithmetic`` now, and how the flags were before."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._own = threading.local()
        self._inside = 0
        self._before: _Snapshot | None = None

    def joined(self, precision: ArithmeticPrecision | None, device: torch.device) -> bool:
        """Whether this thread is inside already; it would wait for itself."""
        if not getattr(self._own, "inside", False):
            return False
        if precision is not None and float32_arithmetic(device) != arithmetic_of(precision, device):
            raise ModelError(
                f"a pass in {precision} was begun inside one in {float32_arithmetic(device)}, and torch's flags hold "
                "for the whole process; begin it after the other has ended"
            )
        return True

    def enter(self, precision: ArithmeticPrecision | None, device: torch.device) -> None:
        with self._condition:
            self._condition.wait_for(lambda: not self._inside or self._fits(precision, device))
            if not self._fits(precision, device):
                self._before = _Snapshot.take()
                _set(device.type, tf32=precision == "tf32" and device.type == "cuda")
            self._inside += 1
            self._own.inside = True

    def leave(self) -> None:
        with self._condition:
            self._inside -= 1
            self._own.inside = False
            if not self._inside and self._before is not None:
                self._before.put_back()
                self._before = None
            self._condition.notify_all()

    def _fits(self, precision: ArithmeticPrecision | None, device: torch.device) -> bool:
        now = float32_arithmetic(device)
        if precision is not None:
            return now == arithmetic_of(precision, device)
        return self._before is None or now == self._before.arithmetic(device)


_TURNS = _Turns()


# torch has these flags twice: per operation, and in the older form of one switch each for cuDNN and for products of
# matrices. Reading the older form raises where the two disagree, so both are set, and both are put back.


def _set(device_type: str, *, tf32: bool) -> None:
    if device_type == "cuda":
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
    for flag in _FLAGS.get(device_type, ()):
        # The older form leaves open what torch.backends.fp32_precision says for all.
        if (flag.fp32_precision in ("tf32", "bf16")) != tf32:
            flag.fp32_precision = "tf32" if tf32 else "ieee"


@dataclass(frozen=True)
class _Snapshot:
    cudnn: bool | None
    matmul: str | None
    each: Mapping[Any, str]

    @classmethod
    def take(cls) -> _Snapshot:
        each = {flag: flag.fp32_precision for flags in _FLAGS.values() for flag in flags}
        return cls(_older(lambda: torch.backends.cudnn.allow_tf32), _older(torch.get_float32_matmul_precision), each)

    def arithmetic(self, device: torch.device) -> Arithmetic:
        return _shortest({self.each[flag] for flag in _FLAGS.get(device.type, ())}, device)

    def put_back(self) -> None:
        if self.cudnn is not None:
            torch.backends.cudnn.allow_tf32 = self.cudnn
        if self.matmul is not None:
            torch.set_float32_matmul_precision(self.matmul)
        for flag, value in self.each.items():
            for setting in ("none", value):  # none: as torch.backends.fp32_precision says, which may be that value
                if flag.fp32_precision != value:
                    flag.fp32_precision = setting


def _older(read: Any) -> Any:
    try:
        return read()
    except RuntimeError:  # the user has set the newer form alone
        return None


def float32_flags() -> tuple[str, ...]:
    """All flags as they are: what a captured CUDA graph takes for granted."""
    return tuple(flag.fp32_precision for flag in _FLAGS["cuda"])
