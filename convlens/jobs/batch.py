"""Many jobs from one file: each in a folder of its own, one failing not stopping the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from convlens.errors import ConvLensError, JobError, near_matches
from convlens.jobs.config import from_mapping
from convlens.jobs.runner import OnProgress, run_job
from convlens.synth.base import Job
from convlens.types import no_op

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_KEYS = ("defaults", "jobs")


@dataclass(frozen=True)
class Entry:
    """A job and the name of its folder."""

    name: str
    job: Job


@dataclass(frozen=True)
class BatchResult:
    """How an entry ended: ``error`` is empty where it is done."""

    name: str
    manifest: Path | None = None
    error: str = ""


def read_batch(path: Path) -> list[Entry]:
    """``jobs:`` is a list of descriptions, each with ``kind`` and a ``name``; ``defaults:`` options for all of them.

    All are checked before any runs. JobError that names the entry.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is no YAML: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("jobs"), list) or not given["jobs"]:
        raise JobError(f"{path} should hold a list `jobs:` of one or more descriptions")
    for key in given:
        if key not in _KEYS:
            raise JobError(
                f"{path}: unknown key {key!r}{near_matches(str(key), _KEYS)}; known keys: {', '.join(_KEYS)}"
            )
    defaults = given.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise JobError(f"{path}: `defaults:` should be a mapping of options")
    entries = [_entry(one, n, defaults) for n, one in enumerate(given["jobs"])]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise JobError(f"{path}: two jobs are called {name!r}; give each a name of its own")
    return entries


def run_batch(
    entries: Sequence[Entry],
    out: Path,
    *,
    device: str = "auto",
    watch: Callable[[Entry], OnProgress] = lambda _: no_op,
    video: bool = False,
) -> list[BatchResult]:
    """One after another, each in ``out / name``; those that are done are left as they are, others go on."""
    return [run_entry(entry, out, device=device, on_progress=watch(entry), video=video) for entry in entries]


def run_entry(
    entry: Entry, out: Path, *, device: str = "auto", on_progress: OnProgress = no_op, video: bool = False
) -> BatchResult:
    """One, with its error as a value."""
    try:
        return BatchResult(
            entry.name, run_job(entry.job, out / entry.name, device=device, on_progress=on_progress, video=video)
        )
    except ConvLensError as error:
        return BatchResult(entry.name, error=error.message)


def _entry(given: Any, n: int, defaults: Mapping[str, Any]) -> Entry:
    place = f"jobs[{n}]"
    if not isinstance(given, dict):
        raise JobError(f"{place} should be a mapping with its kind", field=place)
    own = dict(given)
    name = own.pop("name", f"{n:03}-{own.get('kind', '')}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise JobError(f"{place}: {name!r} is no name for a folder; use letters, digits, - _ .", field=f"{place}.name")
    try:
        return Entry(name, from_mapping({**_known(defaults, own), **own}))
    except ConvLensError as error:
        raise JobError(
            f"{place} ({name}): {error.message}", field=".".join(part for part in (place, error.field) if part)
        ) from error


def _known(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Those defaults that this kind of job has; a kind that there is not is told by ``from_mapping``."""
    from dataclasses import fields

    from convlens.synth.base import job_class, job_kinds

    if own.get("kind") not in job_kinds():
        return {}
    known = {field.name for field in fields(job_class(own["kind"]))}
    return {name: value for name, value in defaults.items() if name in known}
