"""States of a synthesis run on disk: the last two, each behind its hash, so that damage is noticed."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convlens.errors import JobError
from convlens.jobs.job_dir import CHECKPOINTS, write
from convlens.synth.base import State

_NAME = re.compile(r"step-[0-9]{6,}\.pt")
_KEPT = 2  # where the last one is damaged, the one before it is still there
_HASH_BYTES = 64


def save(out: Path, done: int, state: State) -> None:
    """Write the state after ``done`` steps, then remove all but the last two."""
    # To memory first, because the hash stands before the data.
    memory = io.BytesIO()
    torch.save(state, memory)
    data = memory.getvalue()
    digest = hashlib.sha256(data).hexdigest().encode()
    write(out / CHECKPOINTS / f"step-{done:06}.pt", digest + data)
    for path in _newest_first(out)[_KEPT:]:
        path.unlink(missing_ok=True)


def latest(out: Path, *, on_damaged: Callable[[str], None]) -> State | None:
    """The newest intact state; None where there is no checkpoint. Raises JobError where all are damaged.

    Calls ``on_damaged`` with a message for each that is skipped.
    """
    paths = _newest_first(out)
    for path in paths:
        try:
            return _read(path)
        except (OSError, ValueError, RuntimeError) as error:
            on_damaged(f"{path.name} is damaged ({error}); an earlier one is taken")
    if paths:
        raise JobError(f"all checkpoints in {out / CHECKPOINTS} are damaged; remove {out} and start anew")
    return None


def _read(path: Path) -> State:
    content = path.read_bytes()
    digest, data = content[:_HASH_BYTES], content[_HASH_BYTES:]
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ValueError("its hash is not that of its contents")
    # A checkpoint may come from anywhere, and a pickle could run code: tensors and plain values only.
    state: State = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return state


def remove(out: Path) -> None:
    """Remove all checkpoints of a job that is done."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def is_finite(state: Any) -> bool:
    """Whether no tensor of the state holds NaN or infinity, and no float of it is NaN."""
    if isinstance(state, Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(state).all())
    if isinstance(state, dict):
        return all(is_finite(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(is_finite(value) for value in state)
    return not isinstance(state, float) or state == state


def _newest_first(out: Path) -> list[Path]:
    folder = out / CHECKPOINTS
    paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(paths, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)
