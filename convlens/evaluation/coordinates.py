"""Numbers of annotation files, checked: what stands there is from anywhere."""

from __future__ import annotations

import math
from typing import Any

from convlens.errors import RequestError
from convlens.types import Box

_LARGEST = 2**31  # no image is that wide, and products of such numbers are still exact


def coordinate(value: Any, where: str, name: str) -> float:
    """A text or a number of a file as pixels; RequestError, starting with ``where``, for anything else."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise RequestError(f"{where}: {name} is {_shown(value)}; it must be a number of pixels")
    return number


def require_box(left: float, top: float, right: float, bottom: float, where: str) -> Box:
    """The same, or RequestError for a box without pixels."""
    if not (left < right and top < bottom):
        raise RequestError(
            f"{where}: the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) is empty; its right side must lie "
            "right of its left one, its bottom below its top"
        )
    return left, top, right, bottom


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
