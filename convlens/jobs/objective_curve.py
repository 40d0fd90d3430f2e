"""What the curves of a job's losses measure, and the phases of its run: octaves, scales, layers, frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from convlens.report.curves import Phase

_Losses = Mapping[str, Sequence[float]]
_Phases = Callable[[Mapping[str, Any], Mapping[str, Any], _Losses], list[Phase]]

# By kind: what the objective is, with its unit.
_MEASURES = {
    "dream": "½‖a‖² of the layers per pixel, higher is more",
    "efros": "error of the windows, from 0 to 1",
    "fool": "log-probability of the target class",
    "invert": "‖Φ(x) − Φ₀‖² / ‖Φ₀‖² and priors, 0 is equal",
    "quilt": "root mean square error in the overlap, levels of 255",
    "texture": "difference of the Gram matrices, 0 is equal",
}
_LOSSES = ("invert", "texture")
_PARTS = {
    "lead": "lead of the target over the next class, logits",
    "change": "size of the change, levels of 255",
}


def measure_of(job: Mapping[str, Any]) -> str:
    """What the objective of a job of that description is, in words."""
    if job["kind"] == "ascent":
        several = len(job.get("classes") or ()) > 1
        return (
            ("mean logit of the classes" if several else "logit of the class") if job["classes"] else "mean activation"
        )
    return _MEASURES.get(job["kind"], "objective")


def is_loss(job: Mapping[str, Any]) -> bool:
    """Whether the objective falls towards 0."""
    return job["kind"] in _LOSSES


def parts_of(losses: _Losses) -> dict[str, tuple[str, Sequence[float]]]:
    """What each further value measures, and the value by step; none that repeat the objective."""
    objective = losses.get("objective", [])
    return {
        name: (_PARTS.get(name, name), values)
        for name, values in losses.items()
        if name != "objective" and not _repeats(values, objective)
    }


def _repeats(values: Sequence[float], objective: Sequence[float]) -> bool:
    pairs = zip(values, objective, strict=True)
    return all(math.isnan(value) or math.isclose(value, whole, rel_tol=1e-6) for value, whole in pairs)


def phases_of(job: Mapping[str, Any], facts: Mapping[str, Any], losses: _Losses) -> list[Phase]:
    """The phases of a run of that description, as its options place them; of kinds not known here by its losses.

    Steps that an unfinished run has not made belong to no phase. None where all steps are alike.
    """
    steps = len(losses.get("objective", []))
    phases = _PHASES.get(job["kind"], _by_parts)(job, facts, losses)
    kept = [Phase(phase.title, phase.first, min(phase.last, steps)) for phase in phases if phase.first <= steps]
    return kept if len(kept) > 1 else []


def _by_parts(job: Mapping[str, Any], facts: Mapping[str, Any], losses: _Losses) -> list[Phase]:
    """One for each stretch of steps that log the same values."""
    steps = range(len(losses.get("objective", [])))
    names = [name for name in losses if name != "objective"]
    logged = [tuple(name for name in names if not math.isnan(losses[name][step])) for step in steps]
    phases, first = [], 1
    for present, group in groupby(logged):
        last = first + len(list(group)) - 1
        phases.append(Phase(", ".join(present), first, last))
        first = last + 1
    return phases


def _of_dream(job: Mapping[str, Any], facts: Mapping[str, Any], losses: _Losses) -> list[Phase]:
    octaves, steps = job["octaves"], job["steps"]
    sizes = facts.get("octaves") or []
    titles = [f"octave {n + 1}" for n in range(octaves)]
    titles = [f"{title}: {w}×{h} pixels" for title, (h, w) in zip(titles, sizes, strict=False)] or titles
    phases = [Phase(title, n * steps + 1, (n + 1) * steps) for n, title in enumerate(titles)]
    if job["frames"]:
        first = octaves * steps
        phases.append(Phase("zoom, frame by frame", first + 1, first + job["frames"] * job["frame_steps"]))
    return phases


def _of_texture(job: Mapping[str, Any], facts: Mapping[str, Any], losses: _Losses) -> list[Phase]:
    scales, steps = job["scales"], job["steps"]
    halved = [scales - 1 - n for n in range(scales)]
    sizes = [f"{job['width'] >> times}×{job['height'] >> times}" for times in halved]
    return [Phase(f"scale {n + 1}: {size} pixels", n * steps + 1, (n + 1) * steps) for n, size in enumerate(sizes)]


def _of_ascent(job: Mapping[str, Any], facts: Mapping[str, Any], losses: _Losses) -> list[Phase]:
    """With gradients through inactive ReLUs, without, and with noise that falls; ``facts`` hold the settings."""
    steps = len(losses.get("objective", []))
    redirected = min(steps, int(facts.get("redirect_steps") or 0))
    falls_for = math.ceil(facts["settle"] * steps) if facts.get("grain") and facts.get("settle") else 0
    settled = max(redirected, steps - falls_for)
    phases = [
        Phase("gradients pass inactive ReLUs", 1, redirected),
        Phase("search", redirected + 1, settled),
        Phase("the noise of each step falls to 0", settled + 1, steps),
    ]
    return [phase for phase in phases if phase.first <= phase.last]


def _of_fool(job: Mapping[str, Any], facts: Mapping[str, Any], losses: _Losses) -> list[Phase]:
    leads = losses.get("lead", [])
    first = next((n for n, lead in enumerate(leads, 1) if lead > job["margin"]), None)
    if first is None:
        return []
    parts = [Phase("until the network is fooled", 1, first - 1)] if first > 1 else []
    return [*parts, Phase("towards a smaller change", first, len(leads))]


_PHASES: Mapping[str, _Phases] = {
    "ascent": _of_ascent,
    "dream": _of_dream,
    "fool": _of_fool,
    "texture": _of_texture,
}
