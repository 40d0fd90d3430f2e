"""The boundary around one row: whatever goes wrong with it becomes its own error and no neighbour's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from convlens.errors import ConvLensError, OutOfMemoryError
from convlens.runtime.memory import free, out_of_memory

_log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


def attempt(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ConvLensError:
    """What the action returns, or as an error what it raises; the error holds on to nothing of the failed try."""
    outcome = _attempt(action, *args, **kwargs)
    if isinstance(outcome, OutOfMemoryError):
        free()  # here, where the failed try's tensors are gone with its traceback
    return outcome


def _attempt(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ConvLensError:
    try:
        return action(*args, **kwargs)
    except ConvLensError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - the boundary: a fault in one row must not take its neighbours down
        if out_of_memory(error):
            return OutOfMemoryError("the device has not enough memory for this request; ask for less at a time")
        _log.exception("a request failed")
        return ConvLensError("internal error while answering this request; the server's log has the details")
