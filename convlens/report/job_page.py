"""The page of a synthesis job, and the index of a batch of them. Their images are files beside them; no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convlens.report.curves import NARROW, PANEL, WIDE, History, Phase, draw_history
from convlens.report.pages import render_page

_Facts = Sequence[tuple[str, str]]
_STYLES = ("evaluation.css", "job.css")


@dataclass(frozen=True)
class Prediction:
    """A class with its probability, as text and as a share of 1."""

    label: str
    text: str
    share: float


@dataclass(frozen=True)
class ResultImage:
    """An image by its address from the page; ``headline`` says the one number or class that matters."""

    address: str
    title: str
    headline: str = ""
    predictions: Sequence[Prediction] = ()


@dataclass(frozen=True)
class LinkedImage:
    """An image by its address from the page, its caption, and a second, quieter line."""

    address: str
    caption: str
    note: str = ""


@dataclass(frozen=True)
class OptionRow:
    """One option. ``meaning`` marks code with double backticks; ``source`` says where the value comes from."""

    name: str
    value: str
    unit: str
    meaning: str
    source: str
    is_default: bool


@dataclass(frozen=True)
class Objective:
    """The objective of each step, what it measures, its phases, and further values by what these measure.

    ``is_loss`` where it falls towards 0.
    """

    measure: str
    values: Sequence[float]
    phases: Sequence[Phase] = ()
    parts: Sequence[tuple[str, Sequence[float]]] = ()
    is_loss: bool = False


@dataclass(frozen=True)
class JobFiles:
    """Files beside the page: ``video`` is empty where there is none."""

    video: str
    linked: Sequence[str]


@dataclass(frozen=True)
class _Chart:
    """A value over the steps, drawn once for each width of screen."""

    measure: str
    label: str
    drawings: tuple[tuple[str, History], ...]


def render_job(
    *,
    kind: str,
    title: str,
    about: _Facts,
    images: Sequence[ResultImage],
    figures: Sequence[LinkedImage],
    facts: _Facts,
    objective: Objective,
    snapshots: Sequence[LinkedImage],
    options: Sequence[OptionRow],
    provenance: _Facts,
    files: JobFiles,
) -> str:
    """Results first, then how they came about: objective, intermediate images, options, provenance."""
    return render_page(
        "job.html.j2",
        *_STYLES,
        kind=kind,
        title=title,
        about=about,
        images=images,
        figures=figures,
        facts=facts,
        objective=objective,
        chart=_chart(objective),
        parts=[part for part in (_small_chart(*each) for each in objective.parts) if part],
        snapshots=snapshots,
        options=options,
        provenance=provenance,
        files=files,
    )


def _chart(objective: Objective) -> _Chart | None:
    drawings = [
        (name, draw_history(objective.values, objective.phases, frame, is_loss=objective.is_loss))
        for name, frame in (("wide", WIDE), ("narrow", NARROW))
    ]
    known = tuple((name, drawing) for name, drawing in drawings if drawing)
    return _Chart(objective.measure, _label(objective.measure, objective.values), known) if known else None


def _small_chart(measure: str, values: Sequence[float]) -> _Chart | None:
    drawing = draw_history(values, (), PANEL)
    return _Chart(measure, _label(measure, values), (("small", drawing),)) if drawing else None


def _label(measure: str, values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return measure
    return f"{measure}: from {brief(finite[0])} to {brief(finite[-1])} in {len(values)} steps"


def brief(value: float) -> str:
    """Four digits with a true minus sign."""
    return f"{value:.4g}".replace("-", "−")


# ---- a batch


@dataclass(frozen=True)
class BatchCard:
    """A job of a batch. ``state`` is done, failed, interrupted or waiting; ``reason`` says why it is not done.

    ``page`` and ``image`` are addresses from the index, empty where there is none.
    """

    name: str
    kind: str
    subject: str
    state: str
    headline: str = ""
    reason: str = ""
    page: str = ""
    image: str = ""


STATES: Mapping[str, str] = {
    "done": "done",
    "failed": "failed",
    "interrupted": "interrupted",
    "waiting": "not started",
}


def render_batch(*, title: str, cards: Sequence[BatchCard], version: str) -> str:
    """A grid of the jobs in the order of the batch, with their states; those that failed also stand on top."""
    counts = {state: sum(card.state == state for card in cards) for state in STATES}
    return render_page(
        "batch.html.j2",
        *_STYLES,
        title=title,
        cards=cards,
        states=STATES,
        counts=[(STATES[state], count) for state, count in counts.items() if count],
        version=version,
    )
