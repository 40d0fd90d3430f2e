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
from rich.table import Table
from rich.text import Text

from convlens.cli.console import job_bars, out, print_error, print_message, print_result, spinner
from convlens.cli.interrupts import resumable
from convlens.cli.options import DeviceOption, PrecisionOption, RayOption
from convlens.jobs import Entry, read_batch, run_batch, run_job
from convlens.jobs.captions import kind_title
from convlens.jobs.check import check_entries
from convlens.jobs.job_dir import CHECKPOINTS, is_complete, snapshots
from convlens.jobs.option_docs import option_docs
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

    def kept() -> str:
        done = sum(is_complete(output / entry.name) for entry in entries)
        return f"{done} of {len(entries)} jobs are done; {output} keeps them, and the checkpoints of others"

    with resumable(kept):
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
    """Check a file of jobs without running any: its options, and whether the images, classes and layers are there."""
    entries = read_batch(batch)
    failed = False
    with spinner("checking") as update:
        for entry, result in zip(entries, check_entries(entries), strict=True):
            update(f"checked {entry.name}")
            if result.error:
                failed = True
                print_error(f"{entry.name}: {result.error}")
            else:
                print_result(f"{entry.name}: {entry.job.kind}")
    if failed:
        raise typer.Exit(1)


@app.command(name="kinds")
def list_kinds(
    kind: Annotated[str, typer.Argument(help="Explain the options of this kind. Default: list all kinds.")] = "",
) -> None:
    """List all kinds of jobs with their options and defaults, in YAML; or explain those of one kind."""
    if kind:
        _explain_kind(kind)
        return
    for name in job_kinds():
        print_result(f"{name}:")
        for field in fields(job_class(name)):
            default = "(needed)" if field.default is MISSING else json.dumps(field.default)
            print_result(f"  {field.name}: {default}")
    print_message("`convlens jobs kinds KIND` explains the options of a kind")


def _explain_kind(kind: str) -> None:
    table = Table(title=f"{kind}: {kind_title(kind)}", title_justify="left")
    table.add_column("option", no_wrap=True)  # to be copied
    for heading in ("takes", "default", "unit"):
        table.add_column(heading)
    table.add_column("meaning", overflow="fold", ratio=1)
    for option in option_docs(kind):
        cells = (option.name, option.values, option.default, option.unit, option.meaning)
        table.add_row(*map(Text, cells))
    out.print(table)


def run_single_job(job: Job, output: Path, *, device: str, precision: ArithmeticPrecision, video: bool = False) -> None:
    """Run one job with a bar that shows its objective; then print where its page is."""
    if video:
        require_video()
    last = Progress(0, 0, math.nan)

    def kept() -> str:
        if not last.total:
            return "nothing is done yet"
        shown = [f"; the last image of it is {path}" for _, path in snapshots(output)[-1:]]
        return f"{last.done} of {last.total} steps are done and kept in {output / CHECKPOINTS}{''.join(shown)}"

    with resumable(kept), _bars() as watch:
        show = watch(Entry(job.kind, job))

        def on_progress(progress: Progress) -> None:
            nonlocal last
            last = progress
            show(progress)

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
