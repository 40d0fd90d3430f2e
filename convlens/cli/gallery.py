"""``convlens gallery``: the pictures that neighbours are sought in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.cli.console import console, out, rated, step
from convlens.cli.options import MODEL
from convlens.gallery import build as build_gallery
from convlens.gallery.features import FeatureSpace
from convlens.gallery.sources import picture_files
from convlens.models import load
from convlens.runtime.torch_ import keep_freed_memory

app = typer.Typer(help="Galleries for nearest neighbours.", no_args_is_help=True)


@app.callback()
def _gallery() -> None:
    """Galleries for nearest neighbours."""


@app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures; a picture's label is the folder it lies in.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the gallery goes; an older one is replaced.")],
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    labels: Annotated[Path | None, typer.Option(help="CSV with the columns file,label instead of folders.")] = None,
    features: Annotated[
        FeatureSpace, typer.Option(help="unit: compare directions; raw: the lecture's plain L2.")
    ] = "unit",
    graph: Annotated[
        Path | None, typer.Option(help="Graph of `convlens export embedding`, to run on; twice as fast on CPUs.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Build a gallery from a folder of pictures, with the model's own embeddings."""
    keep_freed_memory()
    total = len(picture_files(folder))
    with step(f"loading {model}"):
        classifier = load(model, device=device)
    with rated("embedding", total) as show:
        show(0)
        report = build_gallery(
            folder,
            output,
            classifier,
            graph=graph,
            label_from=labels or "folder",
            feature_space=features,
            on_step=lambda done, _: show(done),
        )
    for name, reason in report.unreadable:
        console.print(f"left out: {name}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    out.print(f"{report.added} pictures in {output}", markup=False, highlight=False, soft_wrap=True)
