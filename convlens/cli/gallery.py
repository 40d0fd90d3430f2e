"""``convlens gallery``: the pictures that neighbours are sought in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from convlens import image
from convlens.cli.console import console, out, rated, step
from convlens.cli.options import MODEL
from convlens.gallery import BuildReport, Gallery
from convlens.gallery import add as add_pictures
from convlens.gallery import build as build_gallery
from convlens.gallery.builder import image_files
from convlens.gallery.index import IndexChoice
from convlens.gallery.vectors import FeatureSpace
from convlens.models import load
from convlens.runtime.torch_runtime import TorchRuntime, keep_freed_memory
from convlens.types import Neighbour

app = typer.Typer(help="Galleries for nearest neighbours.", no_args_is_help=True)

LABELS = typer.Option(help="CSV with the columns file,label instead of folders.")
GRAPH = typer.Option(help="Graph of `convlens export embedding`, to run on; twice as fast on CPUs.")
DEVICE = typer.Option(help="auto, cpu, cuda or cuda:N.")
GALLERY = typer.Argument(metavar="GALLERY", help="A gallery of `convlens gallery build`.")
DEFAULT_MODEL = "packaged:efficientnet_lite0"


@app.callback()
def _gallery() -> None:
    """Galleries for nearest neighbours."""


@app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures; a picture's label is the folder it lies in.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the gallery goes; an older one is replaced.")],
    model: Annotated[str, MODEL] = DEFAULT_MODEL,
    labels: Annotated[Path | None, LABELS] = None,
    features: Annotated[
        FeatureSpace, typer.Option(help="unit: compare directions; raw: the lecture's plain L2.")
    ] = "unit",
    index: Annotated[
        IndexChoice, typer.Option(help="How neighbours are found. auto: exact below 50,000 pictures, then hnsw, ivfpq.")
    ] = "auto",
    graph: Annotated[Path | None, GRAPH] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Build a gallery from a folder of pictures, with the model's own embeddings; goes on where a kill cut it short."""
    keep_freed_memory()
    total = len(image_files(folder))
    with step(f"loading {model}"):
        classifier = load(model, device=device)
    with rated("embedding", total) as show:
        report = build_gallery(
            folder,
            output,
            classifier,
            graph=graph,
            label_from=labels or "folder",
            feature_space=features,
            index=index,
            on_step=lambda done, _: show(done),
        )
    _tell(report, f"{report.added} pictures in {output}")


@app.command("add")
def add(
    gallery: Annotated[Path, GALLERY],
    folder: Annotated[Path, typer.Argument(help="Folder of more pictures; ids are paths relative to it.")],
    model: Annotated[str, MODEL] = DEFAULT_MODEL,
    labels: Annotated[Path | None, LABELS] = None,
    replace: Annotated[bool, typer.Option(help="Take pictures whose ids are there already for newer ones.")] = False,
    graph: Annotated[Path | None, GRAPH] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Add pictures to a gallery; until all of them are in, the gallery stays as it was."""
    keep_freed_memory()
    total = len(image_files(folder))
    with step(f"loading {model}"):
        classifier = load(model, device=device)
    with rated("embedding", total) as show:
        report = add_pictures(
            folder,
            gallery,
            classifier,
            graph=graph,
            label_from=labels or "folder",
            replace=replace,
            on_step=lambda done, _: show(done),
        )
    _tell(report, f"{report.added} pictures added, {len(report.gallery)} in {gallery}")


@app.command("query")
def query(
    gallery: Annotated[Path, GALLERY],
    pictures: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Pictures to find neighbours of.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each.")] = 5,
    model: Annotated[str, MODEL] = DEFAULT_MODEL,
    exact: Annotated[bool, typer.Option(help="Look through all pictures even where there is an index.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a picture instead of a table.")] = False,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Find the pictures of a gallery that are nearest to yours."""
    opened = Gallery.open(gallery, exact=exact)
    with step(f"loading {model}"):
        classifier = load(model, device=device)
    opened.require_weights(classifier.spec.weights_sha256)
    prepared = [image.prepare(image.read(path), classifier.spec).x_CHW for path in pictures]
    runtime = TorchRuntime(classifier.module, classifier.spec.embedding_layer, classifier.device)
    _, embedding_ND = runtime.logits_and_embeddings(np.stack(prepared))
    for path, near in zip(pictures, opened.query(embedding_ND, k=k), strict=True):
        if as_json:
            found = [{"id": one.id, "label": one.label, "distance": one.distance} for one in near]
            line = json.dumps({"picture": str(path), "neighbours": found})
            out.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            _show(path.name, near)


@app.command("info")
def info(
    gallery: Annotated[Path, GALLERY],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """What a gallery holds, how neighbours are found in it, and whether some pictures are near to everybody."""
    opened = Gallery.open(gallery)
    facts = _facts(opened)
    if as_json:
        out.print(json.dumps(facts, indent=1), markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(show_header=False)
    for name, value in _in_words(opened, facts):
        table.add_row(Text(name), Text(value))
    out.print(table)


def _tell(report: BuildReport, what: str) -> None:
    for name, reason in report.unreadable:
        console.print(f"left out: {name}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    out.print(f"{what}\nindex: {_index(report.gallery)}", markup=False, highlight=False, soft_wrap=True)


def _index(gallery: Gallery) -> str:
    record = gallery.index
    if record.kind == "exact":
        return "exact"
    return (
        f"{record.kind}, finds {record.recall:.1%} of the {record.k} nearest (measured on {record.queries} pictures, "
        f"looking {record.breadth} wide, {record.candidates} measured)"
    )


def _facts(gallery: Gallery) -> dict[str, Any]:
    hubs = gallery.hubness
    return {
        "pictures": len(gallery),
        "dimensions": gallery.dimensions,
        "feature_space": gallery.feature_space,
        "model": gallery.model,
        "weights_sha256": gallery.weights_sha256,
        "embedding_layer": gallery.embedding_layer,
        "labels": len({entry.label for entry in gallery.entries}),
        "bytes": gallery.bytes,
        "index": vars(gallery.index),
        "hubness": None if hubs is None else {**vars(hubs), "id": gallery.entries[hubs.row].id},
    }


def _in_words(gallery: Gallery, facts: dict[str, Any]) -> list[tuple[str, str]]:
    hubs = facts["hubness"]
    said = "too few pictures to say"
    if hubs:
        said = (
            f"skewness {hubs['skewness']:.2f} (0: none; above 1: some pictures are everybody's neighbours); "
            f"{hubs['id']} is among the {hubs['k']} nearest of {hubs['largest']} others"
        )
        said += f", measured on {hubs['measured']} pictures" if hubs["measured"] < len(gallery) else ""
    space = {"unit": "unit: directions are compared", "raw": "raw: plain L2"}[gallery.feature_space]
    return [
        ("pictures", f"{len(gallery)}, {facts['labels']} labels"),
        ("features", f"{gallery.dimensions} at {gallery.embedding_layer}, {space}"),
        ("model", f"{gallery.model}, weights {gallery.weights_sha256[:12]}"),
        ("index", _index(gallery)),
        ("hubs", said),
        ("on disk", f"{gallery.bytes / 1e6:.1f} MB"),
    ]


def _show(name: str, near: Sequence[Neighbour]) -> None:
    table = Table(title=Text(name))
    table.add_column("distance", justify="right")
    for heading in ("label", "picture"):
        table.add_column(heading, overflow="fold")
    for one in near:
        table.add_row(f"{one.distance:.4f}", Text(one.label), Text(one.id))
    out.print(table)
