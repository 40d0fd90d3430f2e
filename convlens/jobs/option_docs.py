"""A job's options as rows to read: value, unit, meaning, and whether the value is the default; and those of a kind.

A meaning is what the job's class says of the option: the clause of its docstring that names it. A field whose metadata
holds ``meaning`` or ``unit`` says it itself.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from convlens.jobs.config import to_mapping
from convlens.report.job_page import OptionRow
from convlens.synth.base import Job, job_class
from convlens.synth.presets import OVERRIDABLE, PRESETS, Settings

_SENTENCE_ENDS = re.compile(r"(?<=[.;])\s+(?=[A-Z`|Φ])|(?<=;)\s+(?!or |and )|\n\s*\n")
_NAMES = re.compile("``[a-z_0-9]+``")
_REFERENCE = re.compile(r" \(``[a-z_0-9]+\.[a-z_0-9.]+``\)")  # to a function: for readers of the code

# Said of no class, because all or several kinds share them.
_COMMON = {
    "model": "The network that the job asks.",
    "seed": "Random seed: the same one gives the same images.",
    "steps": "Steps of the optimisation.",
    "start_spread": "Standard deviation of the noise that the run starts from.",
    "preset": "Named set of values for the options that are left open.",
    "parameter": "What is optimised: Fourier coefficients, or pixels.",
    "decorrelated": "Whether the colours of the parameterization are uncorrelated, as those of photographs are not.",
}
_UNITS = {
    "pixels": (
        "size",
        "side",
        "source_side",
        "height",
        "width",
        "block",
        "overlap",
        "tile",
        "window",
        "jitter",
        "blur",
    ),
    "steps": ("steps", "frame_steps", "redirect_steps", "blur_every"),
    "degrees": ("rotate",),
    "percentile": ("norm_percentile", "contribution_percentile"),
    "share": ("scale", "settle", "decay", "tolerance", "error_threshold"),
    "factor": ("octave_scale", "zoom"),
    "images": ("frames",),
    "logit": ("margin",),
    "normalised units": ("grain",),
    "levels of 255": ("bound",),
}
_UNIT = {name: unit for unit, names in _UNITS.items() for name in names}
_TYPES = {"int": "whole number", "float": "number", "str": "text", "bool": "truth value"}
_UNIT_OF_KIND = {("dream", "rate"): "levels of 255", ("texture", "scales"): "", ("ascent", "y"): "units of the layer"}


def option_rows(job: Job, asked: Job, facts: Mapping[str, Any]) -> list[OptionRow]:
    """A row for each option of ``job``, those first that differ from the default; none for a model that is not used.

    ``asked`` is the job before the network chose what it leaves open. An option that is None has the value that
    ``facts`` hold under its name, a preset's for instance.
    """
    values, before = to_mapping(job), to_mapping(asked)
    shared = {field.name for field in fields(Job)}
    options = [field for field in fields(job) if job.needs_model or field.name != "model"]
    rows = [_row(job, field, values[field.name], before[field.name], facts) for field in options]
    return sorted(rows, key=lambda row: (row.is_default, row.name in shared))


def _row(job: Job, field: Field[Any], value: Any, asked: Any, facts: Mapping[str, Any]) -> OptionRow:
    name = field.name
    is_default = field.default is not MISSING and asked == _plain(field.default)
    source = "default" if is_default else ""
    if asked != value:
        source = "chosen from the network"
    elif value is None and facts.get(name) is not None:
        value, source = facts[name], f"preset {getattr(job, 'preset', '')}".strip()
    unit = _unit(job.kind, field)
    return OptionRow(
        name, as_words(value), unit if value is not None else "", _meaning(type(job), field), source, is_default
    )


@dataclass(frozen=True)
class OptionDoc:
    """An option of a kind of job; ``values`` says what it takes, ``default`` is "needed" where there is none."""

    name: str
    values: str
    default: str
    unit: str
    meaning: str


def option_docs(kind: str) -> list[OptionDoc]:
    """All options of that kind, its own first; RequestError for a kind that does not exist."""
    cls = job_class(kind)
    shared = {field.name for field in fields(Job)}
    options = [field for field in fields(cls) if cls.needs_model or field.name != "model"]
    return [_option_doc(cls, field) for field in sorted(options, key=lambda field: field.name in shared)]


def _option_doc(cls: type[Job], field: Field[Any]) -> OptionDoc:
    meaning = _meaning(cls, field).replace("``", "")
    if field.name == "preset":
        meaning += f" There are {', '.join(PRESETS)}."
    return OptionDoc(field.name, _values(str(field.type)), _default(cls, field), _unit(cls.kind, field), meaning)


def _default(cls: type[Job], field: Field[Any]) -> str:
    if field.default is MISSING:
        return "needed"
    if field.default is None and field.name in OVERRIDABLE and hasattr(cls, "settings"):
        preset = str(next(each.default for each in fields(cls) if each.name == "preset"))
        return f"{as_words(getattr(PRESETS[preset], field.name))} (preset {preset})"
    return as_words(_plain(field.default))


def _values(annotation: str) -> str:
    """What an option of that type takes, in words: ``list of whole numbers or texts``."""
    inner = re.fullmatch(r"tuple\[(.+), \.\.\.\]", annotation)
    parts = [part for part in (inner[1] if inner else annotation).split(" | ") if part != "None"]
    words = " or ".join(_TYPES.get(part, part) + ("s" if inner else "") for part in parts)
    return f"list of {words}" if inner else words


def _unit(kind: str, field: Field[Any]) -> str:
    named = _UNIT_OF_KIND.get((kind, field.name), _UNIT.get(field.name, ""))
    return str(field.metadata.get("unit", named))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def as_words(value: Any) -> str:
    """A plain value without JSON's marks: lists with commas, pairs as 3×4, mappings as name value."""
    if value is None or (isinstance(value, Sequence) and not value):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{str(name).replace('_', ' ')} {as_words(part)}" for name, part in value.items())
    if isinstance(value, Sequence):
        if any(isinstance(part, Mapping) for part in value):
            return "; ".join(map(as_words, value))
        return ", ".join("×".join(map(as_words, part)) if isinstance(part, list) else as_words(part) for part in value)
    return str(value).replace("-", "−")


def _meaning(cls: type[Job], field: Field[Any]) -> str:
    if "meaning" in field.metadata:
        return str(field.metadata["meaning"])
    if field.name in ("model", "seed", "parameter"):
        return _COMMON[field.name]
    classes = [cls, *([Settings] if hasattr(cls, "settings") else [])]
    clauses = [clause for each in classes for clause in _clauses(inspect.getdoc(each) or "")]
    named = [(clause.index(f"``{field.name}``"), clause) for clause in clauses if f"``{field.name}``" in clause]
    if not named:
        return _COMMON.get(field.name, "")
    # The clause that begins with the option is about it; one that names it late is about another.
    return min(named, key=lambda pair: pair[0])[1]


def _clauses(text: str) -> Iterator[str]:
    """Sentences and their parts between semicolons; a part that names no option belongs to the one before it."""
    clause = ""
    for part in _SENTENCE_ENDS.split(text):
        part = " ".join(part.split())
        if clause and (_NAMES.search(part) or clause.endswith(".")):
            yield _sentence(clause)
            clause = part
        else:
            clause = f"{clause} {part}".strip()
    if clause:
        yield _sentence(clause)


def _sentence(clause: str) -> str:
    text = _REFERENCE.sub("", clause).rstrip(";,:. ")
    return f"{text[0].upper()}{text[1:]}." if text else ""
