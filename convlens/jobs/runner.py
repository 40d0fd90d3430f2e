"""One job from its description to its page."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convlens import image
from convlens.errors import JobError
from convlens.jobs import checkpoints, job_dir, results
from convlens.jobs.config import identity, to_mapping
from convlens.jobs.loss_log import LossLog, diverged
from convlens.models import Classifier, load
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.synth.base import Job, SynthesisRun
from convlens.types import no_op

CHECKPOINT_S = 30.0


@dataclass(frozen=True)
class Progress:
    """``objective`` is that of the last step that was read; ``note`` something a person should know."""

    done: int
    total: int
    objective: float
    note: str = ""


OnProgress = Callable[[Progress], None]


def run_job(
    job: Job,
    out: Path,
    *,
    device: str = "auto",
    on_progress: OnProgress = no_op,
    checkpoint_s: float = CHECKPOINT_S,
    video: bool = False,
) -> Path:
    """Do the job in the folder ``out``, or go on with it where it was cut short; the path of its manifest.

    After a kill at any moment the same call goes on from the last checkpoint, at most ``checkpoint_s`` seconds of work
    before, to the very same pictures (on a CPU, with as many threads). A folder whose job is done is left as it is.
    ``video`` also writes the work's frames, where it has any. JobError for a folder of another job, where the disk is
    full, and for a run that diverges; the last good checkpoint stays.
    """
    keep_freed_memory()
    with job_dir.held(out):
        classifier = load(job.model, device=device) if job.needs_model else None
        weights = classifier.spec.weights_sha256 if classifier else ""
        job_dir.begin(out, to_mapping(job), identity(job, weights))
        if job_dir.finished(out) is None:
            with _deterministic(classifier):
                _run(job, out, classifier, on_progress=on_progress, checkpoint_s=checkpoint_s, video=video)
        checkpoints.remove(out)
    return out / job_dir.MANIFEST


def _run(
    job: Job, out: Path, classifier: Classifier | None, *, on_progress: OnProgress, checkpoint_s: float, video: bool
) -> None:
    work = job.begin(classifier)
    notes: list[str] = []
    saved = checkpoints.latest(out, on_damaged=notes.append)
    before_s, made_before = 0.0, 0
    if saved is not None:
        work.load_state_dict(saved["work"])
        work.total, before_s, made_before = saved["total"], saved["seconds"], saved["steps"]
        notes.append(f"goes on after {work.done} of {work.total}")
    losses = LossLog(out, made_before, work.blame)
    on_progress(Progress(work.done, work.total, losses.last, "; ".join(notes)))
    began = time.monotonic()
    seconds = _steps(work, out, losses, on_progress, checkpoint_s, before_s, began)
    outcome = work.finish()
    made = results.write_outcome(out, outcome, video=video)
    results.write_page(out, job, work, classifier, outcome, made)
    manifest = {
        **results.versions(),
        "job": to_mapping(job),
        "model": classifier.spec.name if classifier else None,
        "weights_sha256": classifier.spec.weights_sha256 if classifier else None,
        "device": str(classifier.device) if classifier else "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "steps": losses.steps,
        "seconds": round(seconds, 3),
        "objective": losses.last,
        "facts": outcome.facts,
        "files": made,
    }
    results.write_manifest(out, manifest)


def _steps(
    work: SynthesisRun,
    out: Path,
    losses: LossLog,
    on_progress: OnProgress,
    checkpoint_s: float,
    before_s: float,
    began: float,
) -> float:
    """All that are left; the seconds that all took, those of earlier runs too."""
    last = time.monotonic()

    def save() -> None:
        losses.flush()
        state = work.state_dict()
        if not checkpoints.finite(state):
            raise diverged(losses.steps, work.blame)
        spent = before_s + time.monotonic() - began
        checkpoints.save(out, work.done, {"work": state, "total": work.total, "seconds": spent, "steps": losses.steps})

    while work.done < work.total:
        told = losses.add(work.step())
        if losses.added & (losses.added - 1) == 0:
            path = out / job_dir.SNAPSHOTS / f"step-{losses.added:06}.jpg"
            job_dir.write(path, image.encode_jpeg(np.ascontiguousarray(work.snapshot())))
        if told or work.done == work.total:
            on_progress(Progress(work.done, work.total, losses.last))
        if work.done < work.total and time.monotonic() - last >= checkpoint_s:
            save()
            last = time.monotonic()
    save()
    return before_s + time.monotonic() - began


@contextlib.contextmanager
def _deterministic(classifier: Classifier | None) -> Iterator[None]:
    """On a GPU: convolutions by algorithms that add in one order, chosen once."""
    if classifier is None or classifier.device.type != "cuda":
        yield
        return
    flags: Any = torch.backends.cudnn
    with flags.flags(enabled=True, benchmark=False, deterministic=True):
        yield


__all__ = ["JobError", "OnProgress", "Progress", "no_op", "run_job"]
