"""What a run of the engine leaves to those who watch it: one report a request, with nothing of its content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convlens.errors import ConvLensError


@dataclass(frozen=True)
class MethodReport:
    """One method that was called for a request: its share of the seconds, and how many windows it hid in turn."""

    method: str
    seconds: float
    windows: int


@dataclass(frozen=True)
class RowReport:
    """One request, answered or refused.

    ``queue_wait_s``: from when the client sent it until the run began; None where that is not known. ``seconds``: from
    the beginning of the run until its answer was ready, its neighbours' work included. ``error`` None: it was answered.
    """

    request_id: str
    methods: tuple[MethodReport, ...]
    queue_wait_s: float | None
    seconds: float
    error: ConvLensError | None


OnRow = Callable[[RowReport], None]


def unseen(row: RowReport) -> None:
    """Nobody watches."""
