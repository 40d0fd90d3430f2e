"""States of a work on disk: the last two, each with a hash, so that a damaged one is noticed."""

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

_NAME = re.compile(r"step-(?P<done>[0-9]{6,})\.pt")
_KEPT, _HASH = 2, 64


def save(out: Path, done: int, state: State) -> None:
    """Write the state after ``done`` steps, then remove those older than the one before."""
    memory = io.BytesIO()
    torch.save(state, memory)
    data = memory.getvalue()
    digest = hashlib.sha256(data).hexdigest().encode()
    write(out / CHECKPOINTS / f"step-{done:06}.pt", digest + data)
    for path in _listed(out)[_KEPT:]:
        path.unlink(missing_ok=True)


def latest(out: Path, *, on_damaged: Callable[[str], None]) -> State | None:
    """The newest state that is whole; None where there is none yet. JobError where all are damaged."""
    paths = _listed(out)
    for path in paths:
        try:
            data = path.read_bytes()
            if hashlib.sha256(data[_HASH:]).hexdigest().encode() != data[:_HASH]:
                raise ValueError("its hash is not that of its contents")
            found: State = torch.load(io.BytesIO(data[_HASH:]), weights_only=True, map_location="cpu")
        except (OSError, ValueError, RuntimeError) as error:
            on_damaged(f"{path.name} is damaged ({error}); an earlier one is taken")
            continue
        return found
    if paths:
        raise JobError(f"all checkpoints in {out / CHECKPOINTS} are damaged; remove {out} and start anew")
    return None


def remove(out: Path) -> None:
    """All of them: the job is done."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def finite(state: Any) -> bool:
    """Whether no number in it is NaN or infinite."""
    if isinstance(state, Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(state).all())
    if isinstance(state, dict):
        return all(finite(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(finite(value) for value in state)
    return not isinstance(state, float) or state == state


def _listed(out: Path) -> list[Path]:
    """Newest first."""
    folder = out / CHECKPOINTS
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)
