"""Memory that ran out: how to recognise it, and how to try once more with less."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from convlens.errors import OutOfMemoryError

Result = TypeVar("Result")

MAYBE_OUT_OF_MEMORY = (RuntimeError, MemoryError, OutOfMemoryError)
"""The exceptions to catch where memory may run out; ``is_out_of_memory`` says whether it did."""

MAPPED_BYTES = 32 * 2**20
"""Blocks of this size go back to the kernel when they are freed, and each of their pages faults anew: the
DEFAULT_MMAP_THRESHOLD_MAX of glibc's malloc."""

# Texts of torch on the CPU, CUDA and its libraries, C++ on Linux and on Windows, ONNX Runtime's arena and oneDNN: of
# these only torch on a GPU has a type for it.
_MESSAGES = (
    "defaultcpuallocator",
    "out of memory",
    "alloc_failed",
    "bad_alloc",
    "bad allocation",
    "allocate memory",
)
# All that oneDNN says where the code or the workspace of a layer finds no room. "could not create a primitive
# descriptor" is another matter: a layer that it does not know.
_ONEDNN = "could not create a primitive"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by the error's type or, where libraries have none for it, by its message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemoryError):
        return True
    message = str(error)
    known = message == _ONEDNN or any(text in message.lower() for text in _MESSAGES)
    return isinstance(error, Exception) and known


def free_gpu_cache() -> None:
    """Give back the GPU memory that torch keeps, for other libraries and for larger blocks."""
    torch.cuda.empty_cache()


def with_smaller_batch(action: Callable[[int], Result], batch: int) -> Result:
    """``action(batch)``; where memory does not suffice for that, once more with a quarter of the batch."""
    try:
        return action(batch)
    except MAYBE_OUT_OF_MEMORY as error:
        if batch == 1 or not is_out_of_memory(error):
            raise
    # Not inside the except: as long as the error lives, its traceback holds the tensors of the failed try.
    free_gpu_cache()
    return action(max(1, batch // 4))
