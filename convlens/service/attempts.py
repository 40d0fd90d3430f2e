"""The boundary around one row: whatever goes wrong with it becomes its own error and no neighbour's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from convlens.errors import ConvLensError, OutOfMemoryError

_log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


def attempt(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ConvLensError:
    """What the action returns, or as an error what it raises."""
    try:
        return action(*args, **kwargs)
    except ConvLensError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the boundary: a fault in one row must not take its neighbours down
        if out_of_memory(error):
            return OutOfMemoryError("the device has not enough memory for this request; ask for less at a time")
        _log.exception("a request failed")
        return ConvLensError("internal error while answering this request; the server's log has the details")


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
