"""The method calls that a request asks for: each method is looked up once, here, with its options, target and cost."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from convlens import explain
from convlens.engine.backend import EngineOptions, Model
from convlens.errors import RequestError
from convlens.explain import Method
from convlens.instrument import find_layer
from convlens.models import Classifier, find_class
from convlens.protocol.params import (
    STRICT,
    EvaluateParams,
    MethodParams,
    NeuronTarget,
    Params,
    field_prefix,
    raise_invalid,
)
from convlens.types import Neuron

# Forward passes. What costs more runs through many windows or samples, one image after another.
HEAVY = 10.0


@dataclass(frozen=True)
class MethodCall:
    """One explanation to compute: a method of the registry, with complete and validated options.

    ``target`` is a class index, a neuron, or None for the predicted class; a class label only until ``with_target``.
    ``cost`` is in forward passes, 0 until ``with_cost``. ``place`` is where the request names the call, such as
    ``methods.0``, for errors to point at; empty for a default method. ``target_place`` is where its target comes from:
    the call's own, or that of the whole request. ``evaluation`` is what its map is put to, None for nothing.
    """

    id: str
    method: Method
    target: int | str | Neuron | None
    options: Mapping[str, Any]
    place: str = ""
    target_place: str = "target"
    cost: float = 0.0
    evaluation: EvaluateParams | None = None

    @property
    def heavy(self) -> bool:
        """Whether it runs through many windows or samples."""
        return self.cost > HEAVY

    @property
    def evaluation_cost(self) -> float:
        """In forward passes, beside ``cost``."""
        return float(self.evaluation.forwards) if self.evaluation else 0.0

    def with_steps(self, steps: int) -> MethodCall:
        """The same call with an evaluation of so many steps, where it has one."""
        if self.evaluation is None:
            return self
        return replace(self, evaluation=self.evaluation.model_copy(update={"steps": steps}))


def method_calls(params: Params, default_methods: Iterable[str]) -> list[MethodCall]:
    """The explanations that the parameters ask for, in their order; RequestError for an unknown method or option."""
    items = list(params.methods or [])
    places = [f"methods.{n}" for n in range(len(items))]
    if params.explain and params.methods is None:
        items = [MethodParams(method=name) for name in default_methods]
    if params.neighbours is not None and all(item.method != "neighbours" for item in items):
        items.append(MethodParams(method="neighbours"))
    places += [""] * (len(items) - len(places))
    return [_call(*parts, params) for parts in zip(items, _unique_ids(items), places, strict=True)]


def _call(item: MethodParams, id_: str, place: str, params: Params) -> MethodCall:
    with field_prefix(place):
        method = explain.get(item.method)
    shared = {"k": params.neighbours, "seed": params.seed}
    inherited = {key: value for key, value in shared.items() if key in method.options and value is not None}
    model = options_model(method.name)
    try:
        options = model.model_validate(inherited | item.options).model_dump()
    except ValidationError as error:
        raise_invalid(error, model, where=f"{place or method.name}.options")
    # The request's own target holds for every call that names none.
    target, target_place = (params.target, "target") if item.target is None else (item.target, f"{place}.target")
    resolved = target.as_neuron() if isinstance(target, NeuronTarget) else target
    return MethodCall(id_, method, resolved, options, place, target_place)


@functools.cache  # to make one takes 3 ms, to validate by it 1 µs
def options_model(method: str) -> type[BaseModel]:
    """A pydantic model of the method's keyword options, made from its signature."""
    fields: dict[str, Any] = dict(explain.get(method).options)
    return create_model(f"{method}_options", __config__=STRICT, **fields)


def _unique_ids(items: Iterable[MethodParams]) -> list[str]:
    """The id of each: its own, else its method's name, numbered where that is taken."""
    # They name the arrays of a reply file, so two calls of one method need two.
    ids: list[str] = []
    for item in items:
        if item.id in ids:
            raise RequestError(f"two methods have the id {item.id!r}; give each its own", field="methods")
        base = id_ = item.id or item.method
        count = 1
        while id_ in ids:
            count += 1
            id_ = f"{base}-{count}"
        ids.append(id_)
    return ids


# --- what an engine's model, options and entry make of them -----------------------------------------------------------


def entry_calls(params: Params, options: EngineOptions, size: tuple[int, int]) -> tuple[list[MethodCall], list[str]]:
    """The calls that this model entry answers, with their costs for images of that height and width; and warnings.

    RequestError for a call that another entry answers: where sweeps have an entry of their own, those among the default
    methods are left out with a warning, and those that the request names are refused.
    """
    calls, warnings = _without_class_methods(method_calls(params, options.default_methods))
    calls = [with_cost(_in_precision(call, params, options), size) for call in calls]
    entry = options.sweeps_at
    if not entry:
        return calls, warnings
    heavy = [call for call in calls if call.heavy]
    for call in heavy:
        if call.place:
            raise RequestError(
                f"{call.method.name} with many windows or samples is answered by the model entry {entry!r}: ask "
                f"/explanations/{entry}, or name it as the model over gRPC",
                field=call.place,
            )
    warnings += [f"{call.method.name} is left out here: ask the model entry {entry!r} for it" for call in heavy]
    return [call for call in calls if not call.heavy], warnings


def with_cost(call: MethodCall, size: tuple[int, int]) -> MethodCall:
    """The call with what its options cost on an image of that height and width."""
    with field_prefix(call.place):
        return replace(call, cost=call.method.cost(call.options, size))


def with_target(call: MethodCall, model: Model) -> MethodCall:
    """The call with its label as a class index of this model.

    TargetError for a class, RequestError for a layer, that the model does not have.
    """
    if call.method.needs == "embedding" and isinstance(call.target, Neuron):  # neighbours depend on no target
        return replace(call, target=None)
    if isinstance(call.target, Neuron):
        _require_neuron(call, call.target, model)
    elif call.target is not None:
        with field_prefix(call.target_place):
            return replace(call, target=find_class(model.spec.labels, call.target))
    return call


def _require_neuron(call: MethodCall, neuron: Neuron, model: Model) -> None:
    """What can be checked before anything runs; the layer's channels and size show only in a forward pass."""
    try:
        explain.require_neurons(call.method.name)
    except RequestError as error:
        error.field = call.target_place
        raise
    if isinstance(model, Classifier):
        with field_prefix(call.target_place):
            find_layer(model.module, neuron.layer)


def _without_class_methods(calls: list[MethodCall]) -> tuple[list[MethodCall], list[str]]:
    """Without the default methods that explain classes only, where the target is a neuron; a warning for each."""
    kept, warnings = [], []
    for call in calls:
        for_neurons = call.method.needs in ("gradient", "embedding")
        if isinstance(call.target, Neuron) and not call.place and not for_neurons:
            warnings.append(f"{call.method.name} is left out: it explains classes, and a neuron was asked about")
        else:
            kept.append(call)
    return kept, warnings


def _in_precision(call: MethodCall, params: Params, options: EngineOptions) -> MethodCall:
    """The call in the engine's precision, where its method has a choice and the request makes none."""
    if options.precision != "half" or "precision" not in call.options or _names_precision(call, params):
        return call
    # Other strategies are computed in float32 only; asked for half precision they would refuse the request.
    if call.options.get("strategy", "full") != "full":
        return call
    return replace(call, options={**call.options, "precision": "half"})


def _names_precision(call: MethodCall, params: Params) -> bool:
    _, _, position = call.place.partition(".")
    return bool(position) and "precision" in (params.methods or [])[int(position)].options
