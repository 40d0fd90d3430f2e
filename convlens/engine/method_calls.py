"""What a request asks of this engine: its jobs, with the engine's defaults, at the entry that answers them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
    create_model,
)

from convlens import explain
from convlens.engine.options import EngineOptions
from convlens.errors import RequestError
from convlens.protocol.params import STRICT, MethodParams, NeuronTarget, Params, field_prefix, raise_invalid
from convlens.types import Neuron

# Forward passes: what costs more has windows or samples to go through, one picture after another.
HEAVY = 10.0


@dataclass(frozen=True)
class MethodCall:
    """One explanation to compute, with its options complete and checked.

    ``place`` is where the request asked for it, such as ``methods.0``, for errors to point at; empty for a default.
    ``target_place`` is where its target came from, which may be the request's own.
    """

    id: str
    method: str
    target: int | str | Neuron | None
    options: Mapping[str, Any]
    place: str = ""
    target_place: str = "target"


def method_calls(params: Params, default_methods: Iterable[str]) -> list[MethodCall]:
    """The explanations that the parameters ask for, in their order; RequestError for an unknown method or option."""
    asked = list(params.methods or [])
    if params.explain and params.methods is None:
        asked = [MethodParams(method=name) for name in default_methods]
    if params.neighbours is not None and all(one.method != "neighbours" for one in asked):
        asked.append(MethodParams(method="neighbours"))
    ids = _unique_ids(asked)
    named = len(params.methods or [])
    places = [f"methods.{n}" if n < named else "" for n in range(len(asked))]
    return [_job(one, name, place, params) for one, name, place in zip(asked, ids, places, strict=True)]


def _job(one: MethodParams, name: str, place: str, params: Params) -> MethodCall:
    with field_prefix(place):
        method = explain.get(one.method)
    shared = {"k": params.neighbours, "seed": params.seed}
    inherited = {key: value for key, value in shared.items() if key in method.options and value is not None}
    model = options_model(one.method)
    try:
        options = model.model_validate(inherited | one.options).model_dump()
    except ValidationError as error:
        raise_invalid(error, model, where=f"{place or one.method}.options")
    if one.target is None:
        return MethodCall(name, one.method, _plain(params.target), options, place)
    return MethodCall(name, one.method, _plain(one.target), options, place, f"{place}.target")


def _plain(target: int | str | NeuronTarget | None) -> int | str | Neuron | None:
    return target.as_neuron() if isinstance(target, NeuronTarget) else target


@functools.cache
def options_model(method: str) -> type[BaseModel]:
    """A pydantic model of the method's keyword options, made from its signature."""
    fields: dict[str, Any] = dict(explain.get(method).options)
    return create_model(f"{method}_options", __config__=STRICT, **fields)


def _unique_ids(asked: Iterable[MethodParams]) -> list[str]:
    ids: list[str] = []
    for one in asked:
        if one.id in ids:
            raise RequestError(f"two methods have the id {one.id!r}; give each its own", field="methods")
        base, name, count = one.id or one.method, one.id or one.method, 1
        while name in ids:
            count += 1
            name = f"{base}-{count}"
        ids.append(name)
    return ids


_FOR_NEURONS = ("gradient", "embedding")  # neighbours are about no target at all


def asked(params: Params, options: EngineOptions, side: int) -> tuple[list[tuple[MethodCall, float]], list[str]]:
    """The jobs, each with its cost in forward passes, and warnings. RequestError for what this entry does not answer.

    Where sweeps have an entry of their own, those among the default methods are left out, with a warning.
    """
    wanted, warnings = _of_neurons(method_calls(params, options.default_methods))
    found = [_in_precision(job, params, options) for job in wanted]
    costs = [(job, _cost(job, side)) for job in found]
    if not options.sweeps_at:
        return costs, warnings
    elsewhere = [job for job, cost in costs if cost > HEAVY]
    for job in elsewhere:
        if job.place:
            raise RequestError(
                f"{job.method} with many windows or samples is answered by the model entry {options.sweeps_at!r}: ask "
                f"/explanations/{options.sweeps_at}, or name it as the model over gRPC",
                field=job.place,
            )
    entry = options.sweeps_at
    warnings += [f"{job.method} is left out here: ask the model entry {entry!r} for it" for job in elsewhere]
    return [(job, cost) for job, cost in costs if job not in elsewhere], warnings


def _of_neurons(wanted: list[MethodCall]) -> tuple[list[MethodCall], list[str]]:
    """Without the default methods that explain classes only, where a neuron is asked about; a warning for each."""
    kept, warnings = [], []
    for job in wanted:
        if isinstance(job.target, Neuron) and not job.place and explain.get(job.method).needs not in _FOR_NEURONS:
            warnings.append(f"{job.method} is left out: it explains classes, and a neuron was asked about")
        else:
            kept.append(job)
    return kept, warnings


def _cost(job: MethodCall, side: int) -> float:
    with field_prefix(job.place):
        return explain.get(job.method).cost(job.options, side)


def _in_precision(job: MethodCall, params: Params, options: EngineOptions) -> MethodCall:
    """The engine's precision where the request names none, and where the method has a choice."""
    if options.precision == "float32" or "precision" not in job.options or _names_precision(job, params):
        return job
    if job.options.get("strategy", "full") != "full":  # these are computed in float32 only
        return job
    return replace(job, options={**job.options, "precision": options.precision})


def _names_precision(job: MethodCall, params: Params) -> bool:
    _, _, position = job.place.partition(".")
    return bool(position) and "precision" in (params.methods or [])[int(position)].options
