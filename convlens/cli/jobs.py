"""``convlens jobs``: many synthesis jobs from a file. Also runs the single job of each synthesis command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated

import typer

from convlens.cli.console import job_bars, print_error, print_message, print_result
from convlens.cli.options import DeviceOption, PrecisionOption, RayOption
from convlens.jobs import Entry, read_batch, run_batch, run_job
from convlens.jobs.results import require_video
from convlens.jobs.runner import OnProgress, Progress
from convlens.synth.base import Job, job_class, job_kinds
from convlens.types import ArithmeticPrecision

app = typer.Typer(no_args_is_help=True, help="Run many synthesis jobs from a file; run again to resume.")

BatchFile = Annotated[Path, typer.Argument(metavar="BATCH.yaml", help="File of jobs; docs/synthesis.md shows one.")]


@app.command()
def run(
    batch: BatchFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results, one folder per job.")],
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    video: Annotated[bool, typer.Option(help="Also write a video of each job that makes frames.")] = False,
    ray: RayOption = "",
) -> None:
    """Run every job of the file; finished jobs are skipped, interrupted ones resume."""
    if video:
        require_video()
    entries = read_batch(batch)
    if ray:
        from convlens.jobs.ray_cluster import run_batch_on

        results = run_batch_on(ray, entries, output, device=device, precision=precision, video=video)
    else:
        with _bars() as watch:
            results = run_batch(entries, output, device=device, precision=precision, watch=watch, video=video)
    for result in results:
        if result.error:
            print_error(f"{result.name}: {result.error}")
        else:
            print_message(f"{result.name}: {result.manifest}")
    if any(result.error for result in results):
        raise typer.Exit(1)


@app.command()
def check(batch: BatchFile) -> None:
    """Check a file of jobs without running any."""
    for entry in read_batch(batch):
        print_result(f"{entry.name}: {entry.job.kind}")


@app.command(name="kinds")
def list_kinds() -> None:
    """List all kinds of jobs with their options and defaults, in YAML."""
    for kind in job_kinds():
        print_result(f"{kind}:")
        for field in fields(job_class(kind)):
            default = "(needed)" if field.default is MISSING else json.dumps(field.default)
            print_result(f"  {field.name}: {default}")


def run_single_job(job: Job, output: Path, *, device: str, precision: ArithmeticPrecision, video: bool = False) -> None:
    """Run one job with a bar that shows its objective; then print where its page is."""
    if video:
        require_video()
    with _bars() as watch:
        on_progress = watch(Entry(job.kind, job))
        run_job(job, output, device=device, precision=precision, on_progress=on_progress, video=video)
    print_result(f"page: {output / 'index.html'}")


@contextmanager
def _bars() -> Iterator[Callable[[Entry], OnProgress]]:
    """A function that gives each job a bar, and returns the job's progress callback."""
    with job_bars() as bars:

        def watch(entry: Entry) -> OnProgress:
            task = bars.add_task(entry.name, total=None, objective="")

            def show(progress: Progress) -> None:
                # NaN before the first step.
                objective = f"objective {progress.objective:.4g}" if math.isfinite(progress.objective) else ""
                bars.update(task, completed=progress.done, total=progress.total, objective=objective)
                if progress.note:
                    print_message(f"{entry.name}: {progress.note}")

            return show

        yield watch
