"""Running synthesis jobs so that nothing is lost: checkpoints, resuming, pages, manifests, batches.

from convlens.jobs import run_job
run_job(Ascent(classes=("koala",)), Path("koala"))

runner       one job, from description to page    config    jobs as plain values, and back
job_dir      a job's folder, and its lock         batch     many jobs from one file; check: without running them
checkpoints  states of a run on disk              results   images, arrays, video, page, manifest
loss_log     the objective, step by step          ray_cluster   jobs and extraction over a cluster
"""

from __future__ import annotations

from convlens.jobs.batch import Entry, read_batch, run_batch
from convlens.jobs.config import from_mapping, to_mapping
from convlens.jobs.runner import run_job

__all__ = ["Entry", "from_mapping", "read_batch", "run_batch", "run_job", "to_mapping"]
