"""``convlens features``: a folder of pictures in, a folder of their features out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from convlens.cli.console import console, out, rated, step
from convlens.cli.options import MODEL
from convlens.features.embedder import open_embedder
from convlens.features.extract import Extraction, extract
from convlens.features.image_list import find_images
from convlens.features.loader import BATCH_SIZE
from convlens.features.row_files import Format
from convlens.models import load
from convlens.runtime.torch_runtime import keep_freed_memory


def features(
    pictures: Annotated[
        list[Path], typer.Argument(help="A folder of pictures, pictures, or a text file with one path a line.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write. The same command again goes on after a kill.")
    ],
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    graph: Annotated[
        Path | None, typer.Option(help="Graph of `convlens export embedding`, to run on; twice as fast on CPUs.")
    ] = None,
    format: Annotated[Format, typer.Option(help="One .npy file, or shards.")] = "npy",
    batch: Annotated[int, typer.Option(min=1, help="Pictures of one forward pass.")] = BATCH_SIZE,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read pictures. Default: one a core.")] = None,
    ray: Annotated[
        str, typer.Option(help="Spread over a Ray cluster: its address, or `local` for one on this machine.")
    ] = "",
    overwrite: Annotated[bool, typer.Option(help="Replace what a finished or other run left there.")] = False,
) -> None:
    """Write the features of many pictures, with a table of which picture each row is."""
    keep_freed_memory()
    files = find_images(pictures)
    if ray:
        _spread(ray, files, output, model, graph, format=format, batch=batch, device=device, overwrite=overwrite)
        return
    with step(f"loading {model}"):
        embedder = open_embedder(load(model, device=device), graph, batch=batch)
    with rated("extracting", len(files)) as show:
        done = extract(
            files,
            output,
            embedder,
            format=format,
            batch=batch,
            workers=workers,
            overwrite=overwrite,
            on_step=lambda pictures, _: show(pictures),
        )
    _report(done)


def _spread(ray: str, files: dict[str, Path], output: Path, model: str, graph: Path | None, **options: Any) -> None:
    from convlens.jobs.ray_cluster import extract_on

    with rated("extracting", len(files)) as show:
        watched: dict[str, Any] = {"on_step": lambda pictures, _: show(pictures)}
        done = extract_on(ray, files, output, model=model, graph=graph, **options, **watched)
    _report(done)


def _report(done: Extraction) -> None:
    for failure in done.unreadable:
        console.print(
            f"left out: {failure.id}: {failure.reason}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
    if done.resumed:
        console.print(f"{done.resumed} pictures were there from an earlier run", markup=False, highlight=False)
    out.print(
        f"{done.rows} × {done.dimensions} features in {done.folder}", markup=False, highlight=False, soft_wrap=True
    )
