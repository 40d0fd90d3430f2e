"""One job from its description to its page."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convlens import image
from convlens.instrument import arithmetic, arithmetic_of
from convlens.jobs import checkpoints, job_dir, results
from convlens.jobs.config import identity, to_mapping
from convlens.jobs.loss_log import LossLog, divergence
from convlens.models import Classifier, load
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.synth.base import Job, SynthesisRun
from convlens.types import ArithmeticPrecision, no_op
from convlens.utils.interrupts import deferred_interrupts

_CHECKPOINT_S = 30.0


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
    precision: ArithmeticPrecision = "float32",
    on_progress: OnProgress = no_op,
    checkpoint_s: float = _CHECKPOINT_S,
    video: bool = False,
) -> Path:
    """Run the job in the folder ``out``, or resume it where it was interrupted; returns the path of its manifest.

    After a kill at any moment the same call resumes from the last checkpoint, at most ``checkpoint_s`` seconds of work
    before, and ends with the very same images (on a CPU, with as many threads). Ctrl-C and SIGTERM act after the step
    that is under way, which is then in a checkpoint. A folder whose job is done is left as it is. ``precision`` is as
    for ``convlens.load``. ``video`` also writes the run's frames, where it has any. Raises JobError for a folder of
    another job, where the disk is full, and for a run that diverges; the last good checkpoint stays.
    """
    keep_freed_memory()
    with job_dir.exclusive_job_dir(out):
        job_dir.require_no_other_job(out, to_mapping(job))
        # The weights are part of the identity, so the model is loaded before the folder is compared with the job.
        classifier = load(job.model, device=device, precision=precision) if job.needs_model else None
        weights = classifier.spec.weights_sha256 if classifier else ""
        asked, job = job, _resolved(job, classifier)
        job_dir.resume_or_create(out, to_mapping(job), identity(job, weights))
        if not job_dir.is_complete(out):
            with _deterministic(classifier):
                _run(job, asked, out, classifier, on_progress=on_progress, checkpoint_s=checkpoint_s, video=video)
        checkpoints.remove(out)  # also those that a kill right after the manifest left behind
    return out / job_dir.MANIFEST


def _resolved(job: Job, classifier: Classifier | None) -> Job:
    """The job as its folder describes it: with the layers that the network has chosen."""
    with _arithmetic(classifier):
        return job.resolved(classifier)


def _choices(asked: Job, job: Job) -> list[str]:
    """What a job leaves to the network, as notes for a person."""
    before, after = to_mapping(asked), to_mapping(job)
    return [f"{name}: {', '.join(map(str, after[name]))}" for name in after if after[name] != before[name]]


def _run(
    job: Job,
    asked: Job,
    out: Path,
    classifier: Classifier | None,
    *,
    on_progress: OnProgress,
    checkpoint_s: float,
    video: bool,
) -> None:
    with _arithmetic(classifier):
        run = job.begin(classifier)
    steps = _Steps(run, out, on_progress, classifier, _choices(asked, job))
    seconds = steps.run_all(checkpoint_s)
    with _arithmetic(classifier):
        outcome = run.finish()
    files = results.write_outcome(out, outcome, video=video)
    manifest = {
        **results.versions(),
        "job": to_mapping(job),
        "model": classifier.spec.name if classifier else None,
        "weights_sha256": classifier.spec.weights_sha256 if classifier else None,
        "device": str(classifier.device) if classifier else "cpu",
        "precision": arithmetic_of(classifier.precision, classifier.device) if classifier else "float32",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "steps": steps.losses.steps,
        "seconds": round(seconds, 3),
        "objective": steps.losses.last,
        "facts": outcome.facts,
        "files": files,
    }
    results.write_page(out, job, asked, outcome, manifest)
    results.write_manifest(out, manifest)


class _Steps:
    """The steps of a run, with losses, snapshots and checkpoints in its folder."""

    def __init__(
        self,
        run: SynthesisRun,
        out: Path,
        on_progress: OnProgress,
        classifier: Classifier | None,
        begin_notes: Sequence[str],
    ) -> None:
        """Puts the run where the last checkpoint left it, if there is one."""
        self._run, self._out, self._on_progress, self._classifier = run, out, on_progress, classifier
        self._earlier_s, steps = 0.0, 0
        notes = list(begin_notes)
        saved = checkpoints.latest(out, on_damaged=notes.append)
        if saved is not None:
            run.load_state_dict(saved["work"])
            run.total, self._earlier_s, steps = saved["total"], saved["seconds"], saved["steps"]
            notes.append(f"goes on after {run.done} of {run.total}")
        self.losses = LossLog(out, steps, run.blame)
        self._began = time.monotonic()
        on_progress(Progress(run.done, run.total, self.losses.last, "; ".join(notes)))

    def run_all(self, checkpoint_s: float) -> float:
        """Make all steps that are left; the seconds that all took, those of interrupted runs too."""
        # An interrupt in the middle of a step would leave a state that no run has.
        with deferred_interrupts() as interruption:
            self._step_until_done(checkpoint_s, stop=lambda: bool(interruption.received))
            # Once more, so that a kill while the results are written costs no step.
            self._save()
        if interruption.received:
            self._on_progress(Progress(self._run.done, self._run.total, self.losses.last))
        interruption.deliver()
        return self._seconds()

    def _step_until_done(self, checkpoint_s: float, *, stop: Callable[[], bool]) -> None:
        run, losses = self._run, self.losses
        saved_at = time.monotonic()
        while run.done < run.total and not stop():
            # Step by step: a pass of another precision elsewhere in this process waits for one, not for all.
            with _arithmetic(self._classifier):
                was_read = losses.add(run.step())
            # At powers of two, so that their number stays small however long the run.
            if losses.added & (losses.added - 1) == 0:
                path = self._out / job_dir.SNAPSHOTS / f"step-{losses.added:06}.jpg"
                job_dir.write(path, image.encode_jpeg(np.ascontiguousarray(run.snapshot())))
            if was_read or run.done == run.total:
                self._on_progress(Progress(run.done, run.total, losses.last))
            if run.done < run.total and time.monotonic() - saved_at >= checkpoint_s:
                self._save()
                saved_at = time.monotonic()

    def _seconds(self) -> float:
        return self._earlier_s + time.monotonic() - self._began

    def _save(self) -> None:
        self.losses.flush()
        state = self._run.state_dict()
        # A checkpoint with NaN would replace the last good one.
        if not checkpoints.is_finite(state):
            raise divergence(self.losses.steps, self._run.blame)
        facts = {"total": self._run.total, "seconds": self._seconds(), "steps": self.losses.steps}
        checkpoints.save(self._out, self._run.done, {"work": state, **facts})


@contextlib.contextmanager
def _deterministic(classifier: Classifier | None) -> Iterator[None]:
    """On a GPU: convolutions by algorithms that add in one order, chosen once."""
    if classifier is None or classifier.device.type != "cuda":
        yield
        return
    # benchmark would choose the algorithm by its time, which differs from run to run. Not by cudnn.flags(): that allows
    # TF32 for as long.
    cudnn: Any = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
    try:
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before


def _arithmetic(classifier: Classifier | None) -> contextlib.AbstractContextManager[None]:
    return arithmetic(classifier.precision, classifier.device) if classifier else contextlib.nullcontext()
