"""The folder of an evaluation: one JSON line an image while it runs, and what came of it when all are done.

out/.partial/settings.json, out/.partial/records.jsonl     while it runs
out/records.jsonl, evaluation.json and what the caller adds  when it is done; evaluation.json comes last
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convlens.errors import ConvLensError, RequestError
from convlens.types import no_op
from convlens.utils.files import atomic_write, exclusive_lock, sync_file, sync_folder

RESULT, RECORDS, PAGE = "evaluation.json", "records.jsonl", "index.html"
TABLES = ("methods.csv", "pictures.csv")
MAPS = "maps"
_PARTIAL, _SETTINGS = ".partial", "settings.json"
_OURS = frozenset({RESULT, RECORDS, PAGE, MAPS, *TABLES})


class EvaluationDir:
    """``out`` for this process alone; see ``open_evaluation_dir``."""

    def __init__(self, out: Path, settings: Mapping[str, Any], resumed: list[dict[str, Any]]) -> None:
        self.out, self.settings, self.resumed = out, settings, resumed
        self._journal = (out / _PARTIAL / RECORDS).open("ab")

    def add(self, record: Mapping[str, Any]) -> None:
        """Have the record of one more image reach the disk."""
        self._journal.write(_line(record))
        sync_file(self._journal)

    def close(self) -> None:
        self._journal.close()

    def publish(self, result: Mapping[str, Any], write: Callable[[Path], None] = no_op) -> None:
        """Complete the folder: the records, what ``write`` writes into the folder that it is given, the result last."""
        self.close()
        partial = self.out / _PARTIAL
        write(partial)
        _write_json(partial / RESULT, result)
        (self.out / RESULT).unlink(missing_ok=True)
        with atomic_write(self.out / RECORDS) as draft:  # a copy: until the end a kill loses no record
            shutil.copyfile(partial / RECORDS, draft)
        for name in (*TABLES, PAGE, MAPS, RESULT):
            _replace(partial / name, self.out / name)
        sync_folder(self.out)
        (partial / _SETTINGS).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def open_evaluation_dir(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[EvaluationDir]:
    """The folder of a new evaluation, or of an interrupted one with these very settings, with its records so far.

    Raises RequestError while another process writes there, for a file, for a folder that holds other things, for one
    that is complete, and for one that was begun with other settings (which are named); with ``overwrite`` the last two
    are replaced. ConvLensError where the disk refuses, after which the same call resumes.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        busy = RequestError(f"{out} is being written by another process; wait until it is done")
        with exclusive_lock(out, busy=busy):
            _require_ours(out)
            _resume_or_begin(out, settings, overwrite=overwrite)
            folder = EvaluationDir(out, settings, _recovered(out / _PARTIAL / RECORDS))
            with contextlib.closing(folder):
                yield folder
    except OSError as error:
        raise ConvLensError(
            f"{out} cannot be written ({error.strerror or error}); make room, or choose another folder. What was done "
            "so far stays, and the same command goes on from there"
        ) from error


def read_evaluation(out: Path) -> dict[str, Any]:
    """What ``evaluation.json`` in a complete folder holds; RequestError where there is none."""
    try:
        result = json.loads((out / RESULT).read_bytes())
    except FileNotFoundError:
        running = (out / _PARTIAL).is_dir()
        hint = "run the command that began it once more" if running else "make one by `convlens evaluate DIR -o FOLDER`"
        raise RequestError(f"{out} holds no finished evaluation; {hint}", field="evaluation") from None
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{out / RESULT} cannot be read ({error}); run `convlens evaluate` again", field="evaluation"
        ) from error
    if not isinstance(result, dict) or not {"settings", "summary", "verdict"} <= result.keys():
        raise RequestError(f"{out / RESULT} is no evaluation; run `convlens evaluate` again", field="evaluation")
    return result


def read_records(out: Path) -> list[dict[str, Any]]:
    """The records of a complete evaluation."""
    return [json.loads(line) for line in (out / RECORDS).read_bytes().splitlines()]


def _require_ours(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    began = (out / _PARTIAL).is_dir() or RESULT in names
    foreign = [name for name in names if not began or name not in _OURS]
    if foreign:
        raise RequestError(
            f"{out} holds other things than an evaluation ({', '.join(foreign[:3])}); choose a new or empty folder"
        )


def _resume_or_begin(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    partial = out / _PARTIAL
    if (out / RESULT).exists() and not overwrite:
        raise RequestError(f"{out} is finished already; choose a new folder, or --overwrite to make it anew")
    previous = _read_settings(partial / _SETTINGS)
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
    _write_json(partial / _SETTINGS, settings)


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


def _replace(new: Path, old: Path) -> None:
    """Put ``new``, where there is one, in the place of ``old``, which goes in any case."""
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)
    if new.exists():
        new.rename(old)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
