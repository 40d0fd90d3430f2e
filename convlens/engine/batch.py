"""What a run of the engine leaves to those who watch it: one report a request, with nothing of its content.

Which rows of a batch share what: kinds of forward pass, and jobs that one call of a method can answer.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from convlens import explain
from convlens.engine.deadline import Deadline
from convlens.engine.method_calls import HEAVY, MethodCall
from convlens.errors import ConvLensError
from convlens.protocol.requests import Request
from convlens.types import Bytes8, Explanation, Floats, Neuron, Placement, Prediction


@dataclass(frozen=True)
class MethodRecord:
    """One method that was called for a request: its share of the seconds, and how many windows it hid in turn."""

    method: str
    seconds: float
    windows: int


@dataclass(frozen=True)
class RequestRecord:
    """One request, answered or refused.

    ``queue_wait_s``: from when the client sent it until the run began; None where that is not known. ``seconds``: from
    the beginning of the run until its answer was ready, its neighbours' work included. ``error`` None: it was answered.
    """

    request_id: str
    methods: tuple[MethodRecord, ...]
    queue_wait_s: float | None
    seconds: float
    error: ConvLensError | None


OnRow = Callable[[RequestRecord], None]


@dataclass(frozen=True)
class Task:
    """A job and what the engine knows of it: its class, None for the predicted one, or neuron, and its cost.

    ``cost`` is in forward passes.
    """

    job: MethodCall
    target: int | Neuron | None
    cost: float

    @property
    def heavy(self) -> bool:
        return self.cost > HEAVY


@dataclass
class Row:
    """One request on its way through the engine. ``seconds`` is what it was expected to take, 0 where nobody asked."""

    request: Request
    arrival: Deadline
    tasks: list[Task]
    seconds: float
    x_CHW: Floats
    view_HWC: Bytes8
    placement: Placement
    runtime: str = ""
    warnings: list[str] = field(default_factory=list)
    predictions: tuple[Prediction, ...] = ()
    explanations: dict[str, Explanation] = field(default_factory=dict)
    methods: list[MethodRecord] = field(default_factory=list)
    error: ConvLensError | None = None

    @property
    def wants_gradient(self) -> bool:
        """Of a class; neurons have a forward pass of their own."""
        return any(
            explain.get(task.job.method).needs == "gradient" and not isinstance(task.target, Neuron)
            for task in self.tasks
        )

    @property
    def heavy(self) -> bool:
        return any(task.heavy for task in self.tasks)


@dataclass(frozen=True)
class BatchEntry:
    """One row's part in a call of a method: which row of the batch, which task."""

    n: int
    task: Task

    @property
    def job(self) -> MethodCall:
        return self.task.job


def by_kind(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows that will be differentiated and those that will not, without empty groups."""
    kinds: dict[bool, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.wants_gradient].append(row)
    return list(kinds.values())


def light_calls(rows: list[Row]) -> list[list[BatchEntry]]:
    """Jobs of the same method with the same options, at most one of each row, in the order they were asked.

    Those of classes together, and those of neurons of one layer.
    """
    calls: dict[tuple[str, str, str, int], list[BatchEntry]] = defaultdict(list)
    for n, row in enumerate(rows):
        seen: Counter[tuple[str, str, str]] = Counter()
        for task in row.tasks:
            if task.heavy:
                continue
            layer = task.target.layer if isinstance(task.target, Neuron) else ""
            key = task.job.method, json.dumps(dict(task.job.options), sort_keys=True), layer
            # The same method twice on one row, for two classes, takes two calls: their gradients would add up.
            calls[(*key, seen[key])].append(BatchEntry(n, task))
            seen[key] += 1
    return list(calls.values())


def heavy_calls(rows: list[Row]) -> list[list[BatchEntry]]:
    """Jobs with windows or samples: each alone, for that costs nothing and lets any be refused or stopped by itself."""
    return [[BatchEntry(n, task)] for n, row in enumerate(rows) for task in row.tasks if task.heavy]
