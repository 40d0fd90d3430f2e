"""The curve: a line a step on disk, read from the device in groups so that no step waits for its number."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from convlens.errors import JobError
from convlens.jobs.job_dir import LOSSES, told

_GROUP = 16
Values = Mapping[str, "Tensor | float"]


class LossLog:
    """Those of the first ``steps`` are kept; later ones, of steps that are made again, are cut off.

    ``added`` counts all that came in, ``steps`` those that were read and written.
    """

    def __init__(self, out: Path, steps: int, blame: Sequence[str]) -> None:
        self._path, self._blame = out / LOSSES, blame
        self._waiting: list[Values] = []
        self.steps = self.added = steps
        with told(self._path):
            kept = self._path.read_bytes().splitlines(keepends=True)[:steps] if self._path.is_file() else []
            if len(kept) < steps:
                raise JobError(f"{self._path} is damaged; remove {out} and start anew")
            with self._path.open("wb") as file:
                file.writelines(kept)
        self.last = float(json.loads(kept[-1])["objective"]) if kept else math.nan

    def add(self, values: Values) -> bool:
        """Of one more step; True where a group was read, so that ``last`` is new."""
        self._waiting.append(values)
        self.added += 1
        waits = any(isinstance(value, Tensor) and value.device.type != "cpu" for value in values.values())
        if waits and len(self._waiting) < _GROUP:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Read and write what is waiting. JobError for an objective that is no finite number."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        lines: list[str] = []
        for values in _read(waiting):
            if not math.isfinite(values["objective"]):
                self._append(lines)
                raise diverged(self.steps, self._blame)
            lines.append(json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}))
            self.steps += 1
            self.last = values["objective"]
        self._append(lines)

    def _append(self, lines: Sequence[str]) -> None:
        with told(self._path), self._path.open("a", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


def diverged(done: int, blame: Sequence[str]) -> JobError:
    """What to say of a run whose numbers are none any more."""
    lower = f"lower {' or '.join(blame)}" if blame else "choose gentler options"
    return JobError(
        f"step {done + 1}: the objective is no finite number any more; {lower}", field=blame[0] if blame else None
    )


def curve(out: Path) -> dict[str, list[float]]:
    """Each value by name, a number a step; NaN where a step has none."""
    with (out / LOSSES).open(encoding="ascii") as file:
        rows = [json.loads(line) for line in file]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [math.nan if row.get(name) is None else float(row[name]) for row in rows] for name in names}


def _read(waiting: Sequence[Values]) -> list[dict[str, float]]:
    """All tensors by one copy from the device."""
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
