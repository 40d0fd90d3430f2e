"""What a request asks of this engine: its jobs, with the engine's defaults, at the entry that answers them."""

from __future__ import annotations

from dataclasses import replace

from convlens import explain
from convlens.errors import RequestError
from convlens.service.batch import HEAVY
from convlens.service.options import EngineOptions
from convlens.service.request import Job, Params, at, jobs
from convlens.types import Neuron

_FOR_NEURONS = ("gradient", "embedding")  # neighbours are about no target at all


def asked(params: Params, options: EngineOptions, side: int) -> tuple[list[tuple[Job, float]], list[str]]:
    """The jobs, each with its cost in forward passes, and warnings. RequestError for what this entry does not answer.

    Where sweeps have an entry of their own, those among the default methods are left out, with a warning.
    """
    wanted, warnings = _of_neurons(jobs(params, options.default_methods))
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


def _of_neurons(wanted: list[Job]) -> tuple[list[Job], list[str]]:
    """Without the default methods that explain classes only, where a neuron is asked about; a warning for each."""
    kept, warnings = [], []
    for job in wanted:
        if isinstance(job.target, Neuron) and not job.place and explain.get(job.method).needs not in _FOR_NEURONS:
            warnings.append(f"{job.method} is left out: it explains classes, and a neuron was asked about")
        else:
            kept.append(job)
    return kept, warnings


def _cost(job: Job, side: int) -> float:
    with at(job.place):
        return explain.get(job.method).cost(job.options, side)


def _in_precision(job: Job, params: Params, options: EngineOptions) -> Job:
    """The engine's precision where the request names none, and where the method has a choice."""
    if options.precision == "float32" or "precision" not in job.options or _names_precision(job, params):
        return job
    if job.options.get("strategy", "full") != "full":  # these are computed in float32 only
        return job
    return replace(job, options={**job.options, "precision": options.precision})


def _names_precision(job: Job, params: Params) -> bool:
    _, _, position = job.place.partition(".")
    return bool(position) and "precision" in (params.methods or [])[int(position)].options
