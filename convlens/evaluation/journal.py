"""The folder of an evaluation: one JSON line an image while it runs, and what came of it when all are done.

out/.partial/settings.json, out/.partial/records.jsonl     while it runs
out/records.jsonl, evaluation.json and what the caller adds  when it is done; evaluation.json comes last
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convlens.errors import RequestError
from convlens.types import no_op
from convlens.utils.files import atomic_write, sync_file, sync_folder
from convlens.utils.record_dir import (
    PARTIAL,
    RECORDS,
    SETTINGS,
    read_records,
    record_line,
    require_usable,
    resumed_records,
    write_json,
)

__all__ = ["RECORDS", "read_records"]

RESULT, PAGE = "evaluation.json", "index.html"
TABLES = ("methods.csv", "pictures.csv")
MAPS = "maps"
_KIND = "an evaluation"  # what errors call it
_OURS = frozenset({RESULT, RECORDS, PAGE, MAPS, *TABLES})


class EvaluationDir:
    """``out`` for this process alone; see ``open_evaluation_dir``."""

    def __init__(self, out: Path, settings: Mapping[str, Any], resumed: list[dict[str, Any]]) -> None:
        self.out, self.settings, self.resumed = out, settings, resumed
        self._journal = (out / PARTIAL / RECORDS).open("ab")

    def add(self, record: Mapping[str, Any]) -> None:
        """Have the record of one more image reach the disk."""
        self._journal.write(record_line(record))
        sync_file(self._journal)

    def close(self) -> None:
        self._journal.close()

    def publish(self, result: Mapping[str, Any], write: Callable[[Path], None] = no_op) -> None:
        """Complete the folder: the records, what ``write`` writes into the folder that it is given, the result last."""
        self.close()
        partial = self.out / PARTIAL
        write(partial)
        write_json(partial / RESULT, result)
        (self.out / RESULT).unlink(missing_ok=True)
        with atomic_write(self.out / RECORDS) as draft:  # a copy: until the end a kill loses no record
            shutil.copyfile(partial / RECORDS, draft)
        for name in (*TABLES, PAGE, MAPS, RESULT):
            _replace(partial / name, self.out / name)
        sync_folder(self.out)
        (partial / SETTINGS).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)


def require_evaluation_dir(out: Path, *, overwrite: bool) -> None:
    """RequestError, before any work, for a folder that ``open_evaluation_dir`` refuses whatever the settings are."""
    require_usable(out, kind=_KIND, result=RESULT, ours=_OURS, overwrite=overwrite)


@contextlib.contextmanager
def open_evaluation_dir(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[EvaluationDir]:
    """The folder of a new evaluation, or of an interrupted one with these very settings, with its records so far.

    Raises RequestError while another process writes there, for a file, for a folder that holds other things, for one
    that is complete, and for one that was begun with other settings (which are named); with ``overwrite`` the last two
    are replaced. ConvLensError where the disk refuses, after which the same call resumes.
    """
    with (
        resumed_records(out, settings, kind=_KIND, result=RESULT, ours=_OURS, overwrite=overwrite) as resumed,
        contextlib.closing(EvaluationDir(out, settings, resumed)) as folder,
    ):
        yield folder


def read_evaluation(out: Path) -> dict[str, Any]:
    """What ``evaluation.json`` in a complete folder holds; RequestError where there is none."""
    try:
        result = json.loads((out / RESULT).read_bytes())
    except FileNotFoundError:
        running = (out / PARTIAL).is_dir()
        hint = "run the command that began it once more" if running else "make one by `convlens evaluate DIR -o FOLDER`"
        raise RequestError(f"{out} holds no finished evaluation; {hint}", field="evaluation") from None
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{out / RESULT} cannot be read ({error}); run `convlens evaluate` again", field="evaluation"
        ) from error
    if not isinstance(result, dict) or not {"settings", "summary", "verdict"} <= result.keys():
        raise RequestError(f"{out / RESULT} is no evaluation; run `convlens evaluate` again", field="evaluation")
    return result


def _replace(new: Path, old: Path) -> None:
    """Put ``new``, where there is one, in the place of ``old``, which goes in any case."""
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)
    if new.exists():
        new.rename(old)
