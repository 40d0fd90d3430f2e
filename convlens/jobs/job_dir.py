"""A job's folder: what may be written into it, and how, so that no file is ever half there.

OUT/job.yaml                 the description; written first
OUT/checkpoints/             the last two states; gone when the job is done
OUT/losses.jsonl             a line per step
OUT/snapshots/               at steps 1, 2, 4, 8, ...
OUT/*.png, *.npy, index.html the results
OUT/manifest.json            written last: a folder that has it is complete
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from convlens.errors import JobError
from convlens.utils.files import atomic_write, exclusive_lock

DESCRIPTION, CHECKPOINTS, LOSSES, SNAPSHOTS = "job.yaml", "checkpoints", "losses.jsonl", "snapshots"
PAGE, MANIFEST = "index.html", "manifest.json"
_LOCK = ".lock"


@contextlib.contextmanager
def exclusive_job_dir(out: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone.

    Raises JobError while another process works there, for a file, for a folder that holds other things, and for one
    that cannot be written.
    """
    with wrap_os_errors(out):
        if out.exists() and not out.is_dir():
            raise JobError(f"{out} is a file; choose a folder")
        out.mkdir(parents=True, exist_ok=True)
        if not (out / DESCRIPTION).is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise JobError(f"{out} holds other things than a job; choose a new or empty folder")
    busy = JobError(f"{out} is being worked on by another process; wait until it is done")
    with contextlib.ExitStack() as stack:
        with wrap_os_errors(out):
            stack.enter_context(exclusive_lock(out / _LOCK, busy=busy))
        yield


@contextlib.contextmanager
def wrap_os_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a JobError that names the path and says that what was written before stays."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"cannot write to {path}: {error.strerror or error}; make room or choose another folder, then run the same "
            "again: it goes on from its last checkpoint"
        ) from error


def write(path: Path, data: bytes) -> str:
    """Write the whole file or none of it, its folder where it is missing; returns the sha256."""
    with wrap_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def resume_or_create(out: Path, description: Mapping[str, Any], identity: str) -> None:
    """Write the description, or check that the folder's is the same. Raises JobError where it is another's."""
    path = out / DESCRIPTION
    if not path.is_file():
        text = yaml.safe_dump({"identity": identity, **description}, sort_keys=False, allow_unicode=True)
        write(path, text.encode())
        return
    previous = _read_description(path)
    if previous.get("identity") == identity:
        return
    # The identity is a hash and cannot say what differs; options can, weights and contents of files cannot.
    names = [name for name, value in description.items() if previous.get(name) != value]
    raise _other_job(out, f"with other {', '.join(names)}" if names else "of other weights or images")


def require_no_other_job(out: Path, asked: Mapping[str, Any]) -> None:
    """JobError, before a model is loaded, for the folder of a job with other options than those ``asked`` for.

    An empty list, which the network may fill, says nothing.
    """
    path = out / DESCRIPTION
    if not path.is_file():
        return
    previous = _read_description(path)
    names = [name for name, value in asked.items() if value != [] and previous.get(name) != value]
    if names:
        raise _other_job(out, f"with other {', '.join(names)}")


def _read_description(path: Path) -> dict[str, Any]:
    previous = yaml.safe_load(path.read_text(encoding="utf-8"))
    return previous if isinstance(previous, dict) else {}


def _other_job(out: Path, difference: str) -> JobError:
    return JobError(f"{out} holds a job {difference}; choose another folder, or remove this one")


def is_complete(out: Path) -> bool:
    """Whether the folder's job is done."""
    return (out / MANIFEST).is_file()


def snapshots(out: Path) -> list[tuple[int, Path]]:
    """The intermediate images, each with its step, in the order of the steps."""
    return sorted((int(path.stem.removeprefix("step-")), path) for path in (out / SNAPSHOTS).glob("step-*.jpg"))
