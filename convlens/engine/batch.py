"""A batch of requests: one row each, which rows share a pass or a call, and one record each at the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from convlens.engine.method_calls import MethodCall
from convlens.errors import ConvLensError, ModelError, UnsupportedModelError
from convlens.protocol.deadline import Deadline
from convlens.protocol.requests import Request
from convlens.types import Bytes8, Explanation, Floats, Neuron, Placement, Prediction


@dataclass(frozen=True)
class MethodRecord:
    """One method that was called for a request: its share of the seconds, and how many windows it hid in turn.

    ``error``: why it gave nothing, where it failed and the request's other methods did not.
    """

    method: str
    seconds: float
    windows: int
    error: ConvLensError | None = None


@dataclass(frozen=True)
class RequestRecord:
    """What metrics and logs may know of one request, answered or refused: nothing of its content.

    ``queue_wait_s``: from when the client sent it until its reading began; None where that is not known. ``seconds``:
    from the beginning of the batch until its answer was ready, its neighbours' work included. ``error`` None: it was
    answered.
    """

    request_id: str
    methods: tuple[MethodRecord, ...]
    queue_wait_s: float | None
    seconds: float
    error: ConvLensError | None


OnRow = Callable[[RequestRecord], None]


@dataclass
class Row:
    """One request on its way through the engine: what it needs, then what came of it.

    ``failures`` holds the errors of calls that leave the others their results, by the id of the call, ``unevaluated``
    those of evaluations that leave their map. ``seconds`` is what it is expected to take, 0 where no limit of time
    applies; ``view_HWC`` is the model's view as it is shown.
    """

    request: Request
    deadline: Deadline
    calls: list[MethodCall]
    seconds: float
    x_CHW: Floats
    view_HWC: Bytes8
    placement: Placement
    runtime: str = ""
    warnings: list[str] = field(default_factory=list)
    predictions: tuple[Prediction, ...] = ()
    explanations: dict[str, Explanation] = field(default_factory=dict)
    methods: list[MethodRecord] = field(default_factory=list)
    failures: dict[str, ConvLensError] = field(default_factory=dict)
    unevaluated: dict[str, ConvLensError] = field(default_factory=dict)
    error: ConvLensError | None = None

    def fail(self, call: MethodCall, error: ConvLensError) -> None:
        """Note that this call failed: where the model is the reason, it alone, and otherwise the request.

        What the client can mend, and what a later try may bring, is an error of the whole request: half an answer
        would hide it.
        """
        if _leaves_others(error):
            self.failures[call.id] = error
        else:
            self.error = error

    def fail_evaluation(self, call: MethodCall, error: ConvLensError) -> None:
        """As ``fail``, for a call whose map is there."""
        if _leaves_others(error):
            self.unevaluated[call.id] = error
        else:
            self.error = error

    @property
    def outcome_error(self) -> ConvLensError | None:
        """What the request is answered with instead of a reply: also where none of its methods gave anything."""
        if self.error is None and self.failures and not self.explanations:
            return next(iter(self.failures.values()))
        return self.error

    @property
    def wants_gradient(self) -> bool:
        """Of a class; neurons have a forward pass of their own."""
        return any(call.method.needs == "gradient" and not isinstance(call.target, Neuron) for call in self.calls)

    @property
    def heavy(self) -> bool:
        return any(call.heavy or call.evaluation for call in self.calls)

    @property
    def failure_warnings(self) -> tuple[str, ...]:
        """What the reply says of calls that failed alone; each begins with the call's id."""
        left_out = [f"{id_} is left out: {error.message}" for id_, error in self.failures.items()]
        return (*left_out, *(f"{id_} is not evaluated: {error.message}" for id_, error in self.unevaluated.items()))


@dataclass(frozen=True)
class BatchEntry:
    """One row's part in a call that rows share: its position in the batch, and what it asks for."""

    n: int
    call: MethodCall


def _leaves_others(error: ConvLensError) -> bool:
    """Whether the model is the reason, so that the request's other results stand."""
    return isinstance(error, UnsupportedModelError | ModelError) or type(error) is ConvLensError


def by_gradient(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows that need a recorded forward pass and those that do not, without empty groups."""
    groups: dict[bool, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.wants_gradient].append(row)
    return list(groups.values())


def light_calls(rows: list[Row]) -> list[list[BatchEntry]]:
    """Calls of the same method with the same options, at most one of each row, in the order of the requests.

    Those for classes together, and those for neurons of one layer.
    """
    shared: dict[tuple[str, str, str, int], list[BatchEntry]] = defaultdict(list)  # in the order of insertion
    for n, row in enumerate(rows):
        repeats: Counter[tuple[str, str, str]] = Counter()
        for call in row.calls:
            if call.heavy:
                continue
            layer = call.target.layer if isinstance(call.target, Neuron) else ""
            key = call.method.name, json.dumps(dict(call.options), sort_keys=True), layer
            # The same method twice on one row, for two classes, takes two calls: their gradients would add up.
            shared[(*key, repeats[key])].append(BatchEntry(n, call))
            repeats[key] += 1
    return list(shared.values())


def evaluated_calls(rows: list[Row]) -> list[BatchEntry]:
    """Calls whose maps are to be evaluated, as far as they gave one."""
    return [
        BatchEntry(n, call)
        for n, row in enumerate(rows)
        for call in row.calls
        if call.evaluation and call.id in row.explanations
    ]


def heavy_calls(rows: list[Row]) -> list[list[BatchEntry]]:
    """Calls with windows or samples, each alone: sharing saves nothing, and alone each can be refused or stopped."""
    return [[BatchEntry(n, call)] for n, row in enumerate(rows) for call in row.calls if call.heavy]
