"""The losses on disk: a line per step, read from the device in groups so that no step waits for its number."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from convlens.errors import JobError
from convlens.jobs.job_dir import LOSSES, wrap_os_errors
from convlens.utils.files import sync_file

# Reading a number from a GPU waits for all work before it; one wait for 16 steps leaves the GPU busy.
_GROUP = 16
Values = Mapping[str, "Tensor | float"]


class LossLog:
    """The log of a run of which ``steps`` steps are done; lines of later steps, which are made again, are cut off.

    ``added`` counts all steps that came in, ``steps`` those that were read and written; ``last`` is the objective of
    the last of these, NaN before the first. ``blame`` are the options to lower where the objective diverges.
    """

    def __init__(self, out: Path, steps: int, blame: Sequence[str]) -> None:
        self._path, self._blame = out / LOSSES, blame
        self._waiting: list[Values] = []
        self.steps = self.added = steps
        with wrap_os_errors(self._path):
            lines = self._path.read_bytes().splitlines(keepends=True)[:steps] if self._path.is_file() else []
            if len(lines) < steps:
                raise JobError(f"{self._path} is damaged; remove {out} and start anew")
            # Cut, not rewritten: a kill while the file is written anew would lose the lines of all steps.
            self._path.touch()
            os.truncate(self._path, sum(map(len, lines)))
        self.last = float(json.loads(lines[-1])["objective"]) if lines else math.nan

    def add(self, values: Values) -> bool:
        """Add the values of one more step; True where a group was read, so that ``last`` is new."""
        self._waiting.append(values)
        self.added += 1
        on_device = any(isinstance(value, Tensor) and value.device.type != "cpu" for value in values.values())
        if on_device and len(self._waiting) < _GROUP:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Read and write what is waiting. Raises JobError for an objective that is NaN or infinite."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        lines: list[str] = []
        for values in _read(waiting):
            if not math.isfinite(values["objective"]):
                self._append(lines)
                raise divergence(self.steps, self._blame)
            # JSON has no NaN and no infinity.
            lines.append(json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}))
            self.steps += 1
            self.last = values["objective"]
        self._append(lines)

    def _append(self, lines: Sequence[str]) -> None:
        with wrap_os_errors(self._path), self._path.open("a", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in lines)
            sync_file(file)


def divergence(done: int, blame: Sequence[str]) -> JobError:
    """The error of a run that diverged after ``done`` steps."""
    lower = f"lower {' or '.join(blame)}" if blame else "choose gentler options"
    return JobError(
        f"step {done + 1}: the objective is no finite number any more; {lower}", field=blame[0] if blame else None
    )


def read_losses(out: Path) -> dict[str, list[float]]:
    """Each value by name, one per step; NaN where a step has none."""
    with (out / LOSSES).open(encoding="ascii") as file:
        steps = [json.loads(line) for line in file]
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: [math.nan if step.get(name) is None else float(step[name]) for step in steps] for name in names}


def _read(waiting: Sequence[Values]) -> list[dict[str, float]]:
    """The values of some steps as floats, with one copy from the device for all tensors."""
    tensors = [
        value.detach().double().reshape(())
        for values in waiting
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    numbers = iter(torch.stack(tensors).cpu().tolist() if tensors else [])
    return [
        {name: next(numbers) if isinstance(value, Tensor) else float(value) for name, value in values.items()}
        for values in waiting
    ]
