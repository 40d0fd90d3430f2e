"""``convlens jobs``: many synthesis jobs from a file; and the bar that every synthesis command shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convlens.cli.console import console, out
from convlens.errors import RequestError
from convlens.jobs import Entry, read_batch, run_batch, run_job
from convlens.jobs import runner as jobs_running
from convlens.jobs.results import require_video
from convlens.synth.base import Job, job_class, job_kinds

OUTPUT = typer.Option("--output", "-o", help="Folder of the job; the same command goes on where it was cut short.")
DEVICE = typer.Option(help="auto, cpu, cuda or cuda:N.")
SET = typer.Option("--set", help="Any other option of the job, NAME=VALUE; `convlens jobs kinds` lists them.")

app = typer.Typer(no_args_is_help=True, help="Run many synthesis jobs from a file.")


@app.command()
def run(
    batch: Annotated[Path, typer.Argument(metavar="BATCH.yaml")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder that holds one folder a job.")],
    device: Annotated[str, DEVICE] = "auto",
    video: Annotated[bool, typer.Option(help="Also write frames as videos, where a job makes any.")] = False,
    ray: Annotated[
        str, typer.Option(help="Spread over a Ray cluster: its address, or `local` for one on this machine.")
    ] = "",
) -> None:
    """Run every job of the file; finished ones are skipped, those cut short go on."""
    if video:
        require_video()
    entries = read_batch(batch)
    if ray:
        from convlens.jobs.ray_cluster import run_batch_on

        ended = run_batch_on(ray, entries, output, device=device, video=video)
    else:
        with _bars() as watch:
            ended = run_batch(entries, output, device=device, watch=watch, video=video)
    for one in ended:
        line = f"{one.name}: {one.error}" if one.error else f"{one.name}: {one.manifest}"
        console.print(line, style="red" if one.error else None, markup=False, highlight=False, soft_wrap=True)
    if any(one.error for one in ended):
        raise typer.Exit(1)


@app.command()
def check(batch: Annotated[Path, typer.Argument(metavar="BATCH.yaml")]) -> None:
    """Check a file of jobs without running any."""
    for entry in read_batch(batch):
        out.print(f"{entry.name}: {entry.job.kind}", markup=False, highlight=False)


@app.command(name="kinds")
def list_kinds() -> None:
    """All kinds of jobs with their options and defaults, as YAML would have them."""
    for kind in job_kinds():
        out.print(f"{kind}:", markup=False, highlight=False)
        for field in fields(job_class(kind)):
            default = "(needed)" if field.default is MISSING else json.dumps(field.default)
            out.print(f"  {field.name}: {default}", markup=False, highlight=False)


def run_with_bar(job: Job, output: Path, *, device: str, video: bool = False) -> Path:
    """Run one job with a bar that tells its objective; say where the results are."""
    if video:
        require_video()
    with _bars() as watch:
        manifest = run_job(job, output, device=device, on_progress=watch(Entry(job.kind, job)), video=video)
    out.print(f"page: {output / 'index.html'}", markup=False, highlight=False, soft_wrap=True)
    return manifest


def layer_names(text: str) -> list[str]:
    """Of a comma-separated option."""
    return [name.strip() for name in text.split(",") if name.strip()]


def settings(given: Sequence[str]) -> dict[str, Any]:
    """Those of ``--set``, with numbers, true, false, null and lists as such and everything else as words."""
    found = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise RequestError(f"--set {setting} should read NAME=VALUE, such as steps=256")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    return found


@contextmanager
def _bars() -> Iterator[Any]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    objective = TextColumn("{task.fields[objective]}", markup=False)
    with Progress(*columns, objective, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:

        def watch(entry: Entry) -> jobs_running.OnProgress:
            task = bars.add_task(entry.name, total=None, objective="")

            def show(now: jobs_running.Progress) -> None:
                said = f"objective {now.objective:.4g}" if math.isfinite(now.objective) else ""
                bars.update(task, completed=now.done, total=now.total, objective=said)
                if now.note:
                    console.print(f"{entry.name}: {now.note}", markup=False, highlight=False, soft_wrap=True)

            return show

        yield watch
