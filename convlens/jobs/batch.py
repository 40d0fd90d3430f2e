"""Many jobs from one file: each in a folder of its own, one that fails leaves the others alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from convlens.errors import ConvLensError, JobError, near_matches
from convlens.jobs.batch_index import BatchIndex
from convlens.jobs.config import from_mapping
from convlens.jobs.job_dir import PAGE
from convlens.jobs.runner import OnProgress, run_job
from convlens.synth.base import Job, job_class, job_kinds
from convlens.types import ArithmeticPrecision, no_op

# No separators and no leading dot: a job's folder lies in the batch's, where it can be seen.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_KEYS = ("defaults", "jobs")


@dataclass(frozen=True)
class Entry:
    """A job and the name of its folder."""

    name: str
    job: Job


@dataclass(frozen=True)
class BatchResult:
    """How an entry ended: with its manifest, or with an error."""

    name: str
    manifest: Path | None = None
    error: str = ""


def read_batch(path: Path) -> list[Entry]:
    """The entries of a YAML file: ``jobs:`` lists descriptions, each with ``kind`` and, if it likes, a ``name``.

    ``defaults:`` are options for all jobs that have them. Raises JobError, naming the entry, for anything that cannot
    run; nothing runs before all are checked.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("jobs"), list) or not content["jobs"]:
        raise JobError(f"{path} should hold a list `jobs:` of one or more descriptions")
    for key in content:
        if key not in _KEYS:
            raise JobError(
                f"{path}: unknown key {key!r}{near_matches(str(key), _KEYS)}; known keys: {', '.join(_KEYS)}"
            )
    defaults = content.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise JobError(f"{path}: `defaults:` should be a mapping of options")
    entries = [_entry(description, n, defaults) for n, description in enumerate(content["jobs"])]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise JobError(f"{path}: two jobs are called {name!r}; give each a name of its own")
    return entries


def _read_yaml(path: Path) -> Any:
    try:
        # safe_load: YAML's tags could otherwise make any Python object.
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is no YAML: {error}") from error


def _entry(description: Any, n: int, defaults: Mapping[str, Any]) -> Entry:
    place = f"jobs[{n}]"
    if not isinstance(description, dict):
        raise JobError(f"{place} should be a mapping with its kind", field=place)
    options = dict(description)
    name = options.pop("name", f"{n:03}-{options.get('kind', '')}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise JobError(f"{place}: {name!r} is no name for a folder; use letters, digits, - _ .", field=f"{place}.name")
    if name == PAGE:
        raise JobError(f"{place}: {name!r} is the page of the batch; choose another name", field=f"{place}.name")
    try:
        return Entry(name, from_mapping({**_applicable(defaults, options.get("kind")), **options}))
    except ConvLensError as error:
        raise JobError(
            f"{place} ({name}): {error.message}", field=".".join(part for part in (place, error.field) if part)
        ) from error


def _applicable(defaults: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The defaults that this kind of job has as options."""
    if kind not in job_kinds():  # from_mapping refuses it
        return {}
    options = {field.name for field in fields(job_class(kind))}
    return {name: value for name, value in defaults.items() if name in options}


def run_batch(
    entries: Sequence[Entry],
    out: Path,
    *,
    device: str = "auto",
    precision: ArithmeticPrecision = "float32",
    watch: Callable[[Entry], OnProgress] = lambda _: no_op,
    video: bool = False,
) -> list[BatchResult]:
    """Run one after another, each in ``out / name``; jobs that are done are left as they are, others resume.

    ``watch`` is called with each entry before it runs and returns its ``on_progress``. ``out / index.html`` shows all
    jobs; it is written anew after each. Raises JobError where that is a page of something else.
    """
    settings: dict[str, Any] = {"device": device, "precision": precision, "video": video}
    index = BatchIndex(out, {entry.name: entry.job for entry in entries})
    results = []
    try:
        for entry in entries:
            result = run_entry(entry, out, on_progress=watch(entry), **settings)
            results.append(result)
            index.update(entry.name, result.error)
    finally:
        # An interrupted job has come further than the index knows.
        for entry in entries[len(results) : len(results) + 1]:
            index.update(entry.name)
    return results


def run_entry(
    entry: Entry,
    out: Path,
    *,
    device: str = "auto",
    precision: ArithmeticPrecision = "float32",
    on_progress: OnProgress = no_op,
    video: bool = False,
) -> BatchResult:
    """Run one job; an error of ConvLens's becomes part of the result."""
    try:
        settings: dict[str, Any] = {"device": device, "precision": precision, "video": video}
        manifest = run_job(entry.job, out / entry.name, on_progress=on_progress, **settings)
    except ConvLensError as error:
        return BatchResult(entry.name, error=error.message)
    return BatchResult(entry.name, manifest)
