"""A folder that is filled record by record: one JSON line each while it is made, resumed after a kill.

out/.partial/settings.json, out/.partial/records.jsonl  while it is made, beside what its owner keeps there
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from convlens.errors import ConvLensError, RequestError
from convlens.utils.files import atomic_write, exclusive_lock, require_writable

PARTIAL, SETTINGS, RECORDS = ".partial", "settings.json", "records.jsonl"


@contextlib.contextmanager
def resumed_records(
    out: Path, settings: Mapping[str, Any], *, kind: str, result: str, ours: Collection[str], overwrite: bool
) -> Iterator[list[dict[str, Any]]]:
    """The records so far of ``out``, which is this process's alone inside the ``with``; none of a new folder.

    ``kind`` names what the folder is in errors, such as "an atlas"; ``result`` is the file that comes last, ``ours``
    are the names of all that a complete one may hold.

    Raises RequestError while another process writes there, for a file, for a folder that holds other things, for one
    that is complete, and for one that was begun with other settings (which are named); with ``overwrite`` the last two
    are replaced. ConvLensError where the disk refuses, after which the same call resumes.
    """
    require_usable(out, kind=kind, result=result, ours=ours, overwrite=overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        busy = RequestError(f"{out} is being written by another process; wait until it is done")
        with exclusive_lock(out, busy=busy):
            require_usable(out, kind=kind, result=result, ours=ours, overwrite=overwrite)
            _resume_or_begin(out, settings, overwrite=overwrite)
            yield _recovered(out / PARTIAL / RECORDS)
    except OSError as error:
        raise ConvLensError(
            f"{out} cannot be written ({error.strerror or error}); make room, or choose another folder. What was done "
            "so far stays, and the same command goes on from there"
        ) from error


def require_usable(out: Path, *, kind: str, result: str, ours: Collection[str], overwrite: bool) -> None:
    """RequestError, before any work, for a folder that ``resumed_records`` refuses whatever the settings are."""
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose a new folder")
    require_writable(out)
    if not out.is_dir():
        return
    _require_ours(out, kind, result, ours)
    if (out / result).exists() and not overwrite:
        raise RequestError(f"{out} is finished already; choose a new folder, or --overwrite to make it anew")


def read_records(out: Path) -> list[dict[str, Any]]:
    """The records of a complete folder."""
    return [json.loads(line) for line in (out / RECORDS).read_bytes().splitlines()]


def record_line(record: Mapping[str, Any]) -> bytes:
    """The record as one line of the journal."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write the file whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _require_ours(out: Path, kind: str, result: str, ours: Collection[str]) -> None:
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    began = (out / PARTIAL).is_dir() or result in names
    foreign = [name for name in names if not began or name not in ours]
    if foreign:
        raise RequestError(
            f"{out} holds other things than {kind} ({', '.join(foreign[:3])}); choose a new or empty folder"
        )


def _resume_or_begin(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    partial = out / PARTIAL
    previous = _read_settings(partial / SETTINGS)
    if previous is not None:
        differences = _differences(previous, settings)
        if not differences:
            return
        if not overwrite:
            raise RequestError(
                f"{out} was begun with other settings: {differences}; repeat the command that began it, choose a new "
                "folder, or --overwrite to start again"
            )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_json(partial / SETTINGS, settings)


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _differences(previous: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    # Through JSON: what was read has lists where tuples were written.
    current = json.loads(json.dumps(settings))
    names = [*current, *(name for name in previous if name not in current)]
    return "; ".join(
        f"{name} was {previous.get(name)} and is {current.get(name)}"
        for name in names
        if previous.get(name) != current.get(name)
    )


def _recovered(path: Path) -> list[dict[str, Any]]:
    """The whole records; the half line that a kill may leave is cut off."""
    records, end = [], 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    break
                records.append(record)
                end += len(line)
        os.truncate(path, end)
    return records
