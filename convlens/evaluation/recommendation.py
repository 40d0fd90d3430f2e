"""The methods that a finished evaluation recommends for a model, and the evidence for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, ValidationError

from convlens import explain
from convlens.errors import RequestError

RESULT = "evaluation.json"


class _Value(BaseModel):
    mean: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int


class _Method(BaseModel):
    metrics: dict[str, _Value]


class _Summary(BaseModel):
    main_metric: str
    pictures: int
    methods: dict[str, _Method]


class _Settings(BaseModel):
    model: str
    weights_sha256: str
    methods: dict[str, dict[str, Any]] = {}
    list_sha256: str = ""


class _Verdict(BaseModel):
    recommended: list[str]
    headline: str


class _Evaluation(BaseModel):
    """What this file reads of ``evaluation.json``; its other parts are ignored."""

    settings: _Settings
    summary: _Summary
    verdict: _Verdict


@dataclass(frozen=True)
class Recommendation:
    """``options`` holds for each method those it was evaluated with.

    ``evidence`` holds numbers and texts only, and no time: the same evaluation gives the same evidence.
    """

    methods: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]
    model: str
    weights_sha256: str
    evidence: Mapping[str, Any]

    def require_weights(self, sha256: str) -> None:
        """Raises RequestError unless these very weights were evaluated."""
        # Which method is faithful differs from network to network: deconvnet ranks well on one, at chance on another.
        if sha256 != self.weights_sha256:
            raise RequestError(
                f"the evaluation is of {self.model} with weights {self.weights_sha256}, but the model has weights "
                f"{sha256}; give the model that was evaluated, or evaluate this one by `convlens evaluate`",
                field="methods",
            )

    def options_not_default(self) -> dict[str, dict[str, Any]]:
        """Of the recommended methods, the options whose evaluated values are not the method's own defaults."""
        changed: dict[str, dict[str, Any]] = {}
        for name in self.methods:
            defaults = {option: default for option, (_, default) in explain.get(name).options.items()}
            values = self.options[name]
            if different := {key: value for key, value in values.items() if value != defaults.get(key)}:
                changed[name] = different
        return changed


def read_recommendation(folder: Path) -> Recommendation:
    """The recommendation in a folder that ``convlens evaluate`` wrote.

    Raises RequestError for a folder without a finished evaluation, a damaged one, one that recommends nothing, and one
    that recommends methods that are not there.
    """
    evaluation = _read(folder)
    settings, summary, verdict = evaluation.settings, evaluation.summary, evaluation.verdict
    if not verdict.recommended:
        raise RequestError(
            f"the evaluation in {folder} recommends no method: {verdict.headline} Name the methods by --methods",
            field="methods",
        )
    for name in verdict.recommended:
        explain.get(name)
    options = {name: settings.methods.get(name, {}) for name in verdict.recommended}
    return Recommendation(
        tuple(verdict.recommended),
        options,
        settings.model,
        settings.weights_sha256,
        _evidence(settings, summary, options),
    )


def _read(folder: Path) -> _Evaluation:
    path = folder / RESULT
    make = f"make one with `convlens evaluate PICTURES --model MODEL -o {folder}`"
    try:
        return _Evaluation.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(
            f"no finished evaluation in {folder} ({RESULT} is missing); {make}, or finish one that was stopped there",
            field="evaluation",
        ) from error
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}", field="evaluation") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RequestError(
            f"{path} is damaged or no evaluation ({place}: {first['msg']}); {make}", field="evaluation"
        ) from error


def _evidence(settings: _Settings, summary: _Summary, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    methods: dict[str, Any] = {}
    for name in options:
        value = summary.methods[name].metrics.get(summary.main_metric) if name in summary.methods else None
        methods[name] = {**(value.model_dump() if value else {}), "options": dict(options[name])}
    return {
        "model": settings.model,
        "weights_sha256": settings.weights_sha256,
        "pictures": summary.pictures,
        "pictures_sha256": settings.list_sha256,
        "metric": summary.main_metric,
        "methods": methods,
    }
