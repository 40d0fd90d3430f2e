"""Memory that ran out: how to know it, and how to try once more with less."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from convlens.errors import OutOfMemoryError

T = TypeVar("T")

# What can mean that; whether it does, out_of_memory knows.
MAYBE_OUT_OF_MEMORY = (RuntimeError, MemoryError, OutOfMemoryError)
# Torch on the CPU, CUDA and its libraries, C++ on Linux and on Windows, ONNX Runtime's arena and oneDNN: of these only
# torch on a GPU has a type for it.
_SAID = (
    "defaultcpuallocator",
    "out of memory",
    "alloc_failed",
    "bad_alloc",
    "bad allocation",
    "allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, whoever says so in whatever way."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemoryError):
        return True
    return isinstance(error, Exception) and any(text in str(error).lower() for text in _SAID)


def free_gpu_cache() -> None:
    """Give back what torch keeps of a GPU's memory, for other libraries and for larger blocks."""
    torch.cuda.empty_cache()


def with_smaller_batch(action: Callable[[int], T], batch: int) -> T:
    """``action(batch)``; where memory does not suffice for that, once more with a quarter of the batch."""
    try:
        return action(batch)
    except MAYBE_OUT_OF_MEMORY as error:
        if batch == 1 or not is_out_of_memory(error):
            raise
    # Not inside the except: as long as the error lives, its traceback holds the tensors of the failed try.
    free_gpu_cache()
    return action(max(1, batch // 4))
