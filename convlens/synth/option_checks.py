"""Checks of a job's options: each raises RequestError with the option as ``field`` and what it should be.

Comparisons are negated (``not value >= least``) so that NaN fails them too.
"""

from __future__ import annotations

from collections.abc import Sequence

from convlens.errors import RequestError


def require_at_least(least: float, options: object, *names: str) -> None:
    """Options of ``least`` or more."""
    for name in names:
        if not getattr(options, name) >= least:
            raise RequestError(f"{name} should be {least} or more, not {getattr(options, name)}", field=name)


def require_positive(options: object, *names: str) -> None:
    """Options above 0."""
    for name in names:
        if not getattr(options, name) > 0:
            raise RequestError(f"{name} should be above 0, not {getattr(options, name)}", field=name)


def require_between(low: float, high: float, options: object, *names: str) -> None:
    """Options from ``low`` to ``high``; None, which stands for a default, passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise RequestError(f"{name} should be from {low:g} to {high:g}, not {value}", field=name)


def require_choice(known: Sequence[str], options: object, name: str) -> None:
    """An option with one of the ``known`` values."""
    value = getattr(options, name)
    if value not in known:
        raise RequestError(f"no {name} {value!r}; there are: {', '.join(known)}", field=name)
