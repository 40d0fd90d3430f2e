"""Jobs as plain values, as YAML holds them, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from convlens.errors import JobError, near_matches
from convlens.synth.base import Job, job_class
from convlens.utils.files import sha256_of_file

# What pydantic puts into the place of an error for the branches of a union, such as int | str.
_UNION_BRANCHES = ("int", "str", "float", "bool")


def to_mapping(job: Job) -> dict[str, Any]:
    """``kind`` and every option; tuples become lists."""
    # By way of JSON, so that a description equals what YAML gives back.
    values: dict[str, Any] = json.loads(json.dumps(asdict(job)))
    return {"kind": job.kind, **values}


def from_mapping(values: Mapping[str, Any]) -> Job:
    """The job of a description. Raises JobError, with the option's name in ``field``, for unknown options and types."""
    if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
        raise JobError("a job is a mapping with its kind, such as {kind: ascent, classes: [koala]}", field="kind")
    cls = job_class(values["kind"])
    known = [field.name for field in fields(cls)]
    options = {str(name): value for name, value in values.items() if name != "kind"}
    for name in options:
        if name not in known:
            raise JobError(
                f"{cls.kind} has no option {name!r}{near_matches(name, known)}; there are: {', '.join(known)}",
                field=name,
            )
    try:
        # By way of JSON, because strict validation takes a list for a tuple only there.
        return TypeAdapter(cls).validate_json(_as_json(options), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in _UNION_BRANCHES)
        raise JobError(f"{place}: {first['msg']}", field=place) from error


def _as_json(options: Mapping[str, Any]) -> str:
    try:
        return json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise JobError(f"options should be numbers, words, true, false or lists of those: {error}") from error


def identity(job: Job, weights_sha256: str) -> str:
    """Hash of the description, the weights and the contents of all input files: a run resumes only where it is equal.

    Raises JobError for an input that cannot be read.
    """
    # Sorted, so that the order in which a job's class lists its options does not matter.
    parts = [json.dumps(to_mapping(job), sort_keys=True), weights_sha256]
    for path in job.inputs():
        try:
            parts.append(sha256_of_file(Path(path)))
        except OSError as error:
            raise JobError(f"cannot read {path}: {error.strerror or error}") from error
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
