"""Which rows of a batch share what: kinds of forward pass, and jobs that one call of a method can answer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from convlens import explain
from convlens.errors import ConvLensError
from convlens.service.request import Job, Request
from convlens.types import Bytes8, Explanation, Floats, Placement, Prediction


@dataclass
class Row:
    """One request on its way through the engine. ``targets`` go with ``jobs``; None means the predicted class."""

    request: Request
    jobs: list[Job]
    targets: list[int | None]
    x_CHW: Floats
    view_HWC: Bytes8
    placement: Placement
    runtime: str = ""
    warnings: list[str] = field(default_factory=list)
    predictions: tuple[Prediction, ...] = ()
    explanations: dict[str, Explanation] = field(default_factory=dict)
    error: ConvLensError | None = None

    @property
    def wants_gradient(self) -> bool:
        return any(explain.get(job.method).needs == "gradient" for job in self.jobs)


@dataclass(frozen=True)
class Share:
    """One row's part in a call of a method: which row of the batch, which job, which class."""

    n: int
    job: Job
    target: int | None


def by_kind(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows that will be differentiated and those that will not, without empty groups."""
    kinds: dict[bool, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.wants_gradient].append(row)
    return list(kinds.values())


def shared_calls(rows: list[Row]) -> list[list[Share]]:
    """Jobs of the same method with the same options, at most one of each row, in the order they were asked."""
    calls: dict[tuple[str, str, int], list[Share]] = defaultdict(list)
    for n, row in enumerate(rows):
        seen: Counter[tuple[str, str]] = Counter()
        for job, target in zip(row.jobs, row.targets, strict=True):
            key = job.method, json.dumps(dict(job.options), sort_keys=True)
            # The same method twice on one row, for two classes, takes two calls: their gradients would add up.
            calls[(*key, seen[key])].append(Share(n, job, target))
            seen[key] += 1
    return list(calls.values())
