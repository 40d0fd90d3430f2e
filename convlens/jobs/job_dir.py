"""A job's folder: what may be written into it, and how, so that nothing is ever half there.

OUT/job.yaml                 the description; written first
OUT/checkpoints/             the last two states; gone when the job is done
OUT/losses.jsonl             a line a step
OUT/snapshots/               at steps 1, 2, 4, 8, ...
OUT/*.png, *.npy, index.html the results
OUT/manifest.json            written last: where it is, the job is done
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from convlens.errors import JobError

DESCRIPTION, CHECKPOINTS, LOSSES, SNAPSHOTS = "job.yaml", "checkpoints", "losses.jsonl", "snapshots"
PAGE, MANIFEST = "index.html", "manifest.json"
_LOCK = ".lock"


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder, made where there is none, for this process alone; the kernel lets go of it after any kill.

    JobError while another process has it, for a file, for a folder that holds other things, and where it cannot be
    written.
    """
    import fcntl

    with told(out):
        if out.exists() and not out.is_dir():
            raise JobError(f"{out} is a file; choose a folder")
        out.mkdir(parents=True, exist_ok=True)
        if not (out / DESCRIPTION).is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise JobError(f"{out} holds other things than a job; choose a new or empty folder")
        lock = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise JobError(f"{out} is being worked on by another process; wait until it is done") from error
    finally:
        os.close(lock)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """What the system refuses becomes a JobError that names the place; what was written before stays."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise JobError(
            f"cannot write to {path}: {error.strerror or error}; make room or choose another folder, then run the same "
            "again: it goes on from its last checkpoint"
        ) from error


def write(path: Path, data: bytes) -> str:
    """The whole file or none of it; its sha256."""
    write_by(path, lambda file: file.write(data))
    return hashlib.sha256(data).hexdigest()


def write_by(path: Path, writing: Callable[[IO[bytes]], object]) -> None:
    """As ``write``, by a function that is given the open file."""
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        try:
            with draft.open("wb") as file:
                writing(file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def begin(out: Path, description: Mapping[str, Any], identity: str) -> None:
    """Write the description, or find that it is the one that lies there. JobError where it is another."""
    path = out / DESCRIPTION
    text = yaml.safe_dump({"identity": identity, **description}, sort_keys=False, allow_unicode=True)
    if not path.is_file():
        write(path, text.encode())
        return
    there = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(there, dict) and there.get("identity") == identity:
        return
    differ = [name for name, value in description.items() if not isinstance(there, dict) or there.get(name) != value]
    what = f"with other {', '.join(differ)}" if differ else "of other weights or pictures"
    raise JobError(f"{out} holds a job {what}; choose another folder, or remove this one")


def finished(out: Path) -> dict[str, Any] | None:
    """The manifest of a job that is done."""
    path = out / MANIFEST
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
