"""Jobs as plain values, as YAML holds them, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from convlens.errors import JobError, RequestError, near_matches
from convlens.synth.base import Job, job_class


def to_mapping(job: Job) -> dict[str, Any]:
    """``kind`` and every option; tuples become lists."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(job)))
    return {"kind": job.kind, **values}


def from_mapping(given: Mapping[str, Any]) -> Job:
    """The job. JobError, with the option's name in ``field``, for what is no option or of another type."""
    if not isinstance(given, Mapping) or not isinstance(given.get("kind"), str):
        raise JobError("a job is a mapping with its kind, such as {kind: ascent, classes: [koala]}", field="kind")
    cls = job_class(given["kind"])
    known = [field.name for field in fields(cls)]
    options = {str(name): value for name, value in given.items() if name != "kind"}
    for name in options:
        if name not in known:
            raise JobError(
                f"{cls.kind} has no option {name!r}{near_matches(name, known)}; there are: {', '.join(known)}",
                field=name,
            )
    try:
        # As JSON: strict about types, and a list there is a tuple here.
        return TypeAdapter(cls).validate_json(_as_json(options), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
        raise JobError(f"{place}: {first['msg']}", field=place) from error


def identity(job: Job, weights_sha256: str) -> str:
    """Hash of the description, the weights and the contents of all input files: what a run may go on from.

    JobError for an input that cannot be read.
    """
    parts = [json.dumps(to_mapping(job), sort_keys=True), weights_sha256]
    for path in job.inputs():
        try:
            parts.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
        except OSError as error:
            raise JobError(f"cannot read {path}: {error.strerror or error}") from error
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _as_json(options: Mapping[str, Any]) -> str:
    try:
        return json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise JobError(f"options should be numbers, words, true, false or lists of those: {error}") from error


def _is_branch(part: int | str) -> bool:
    """The name that pydantic gives to one of several types."""
    return isinstance(part, str) and part in ("int", "str", "float", "bool")


__all__ = ["JobError", "RequestError", "from_mapping", "identity", "to_mapping"]
