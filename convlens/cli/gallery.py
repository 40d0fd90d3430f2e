"""``convlens gallery``: build, extend and query galleries, the images among which nearest neighbours are searched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from convlens import image
from convlens.cli.console import out, print_result, print_skipped, spinner, throughput_bar
from convlens.cli.interrupts import resumable
from convlens.cli.models import accelerated
from convlens.cli.options import (
    DEFAULT_MODEL,
    AccelerateOption,
    DeviceOption,
    GalleryPath,
    GraphOption,
    Images,
    ModelOption,
    PrecisionOption,
)
from convlens.gallery import BuildReport, Gallery
from convlens.gallery import add as add_images
from convlens.gallery import build as build_gallery
from convlens.gallery.builder import image_files, interrupted_images, interrupted_runtime
from convlens.gallery.index import IndexChoice
from convlens.gallery.vectors import FeatureSpace
from convlens.gallery.versions import require_ours
from convlens.models import load
from convlens.runtime.torch_runtime import TorchRuntime, keep_freed_memory
from convlens.types import Neighbour
from convlens.utils.files import require_writable

app = typer.Typer(help="Build and query galleries for nearest neighbours.", no_args_is_help=True)

LabelsOption = Annotated[
    Path | None, typer.Option(help="CSV with the columns file,label. Default: the folders' names are the labels.")
]


@app.command()
def build(
    folder: Annotated[Path, typer.Argument(help="Folder of images; an image's label is the folder it lies in.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Gallery to write; an older one is replaced.")],
    model: ModelOption = DEFAULT_MODEL,
    labels: LabelsOption = None,
    features: Annotated[
        FeatureSpace, typer.Option(help="unit: features scaled to length 1; raw: features as they are (plain L2).")
    ] = "unit",
    index: Annotated[
        IndexChoice, typer.Option(help="Search index. auto: exact below 50,000 images, hnsw below 300,000, else ivfpq.")
    ] = "auto",
    graph: GraphOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    accelerate: AccelerateOption = True,
) -> None:
    """Build a gallery from a folder of images with the model's embeddings; run again to resume."""
    keep_freed_memory()
    require_ours(output)
    require_writable(output)
    total = len(image_files(folder))
    with spinner(f"loading {model}"):
        classifier = load(model, device=device, precision=precision)
    by_graph = accelerate and not graph and interrupted_runtime(output) != TorchRuntime.name
    classifier = accelerated(classifier, wanted=by_graph)
    with _kept(output, total), throughput_bar("embedding", total) as update:
        report = build_gallery(
            folder,
            output,
            classifier,
            graph=graph,
            label_from=labels or "folder",
            feature_space=features,
            index=index,
            on_step=lambda done, _: update(done),
        )
    _show_report(report, f"{report.added} images in {output}")


@app.command()
def add(
    gallery: GalleryPath,
    folder: Annotated[Path, typer.Argument(help="Folder of images to add; ids are paths relative to it.")],
    model: ModelOption = DEFAULT_MODEL,
    labels: LabelsOption = None,
    replace: Annotated[bool, typer.Option(help="Replace images whose ids are in the gallery already.")] = False,
    graph: GraphOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    accelerate: AccelerateOption = True,
) -> None:
    """Add images to a gallery; the gallery changes only when all of them are in."""
    keep_freed_memory()
    Gallery.open(gallery)
    require_writable(gallery)
    total = len(image_files(folder))
    with spinner(f"loading {model}"):
        classifier = load(model, device=device, precision=precision)
    by_graph = accelerate and not graph and interrupted_runtime(gallery) != TorchRuntime.name
    classifier = accelerated(classifier, wanted=by_graph)
    with _kept(gallery, total), throughput_bar("embedding", total) as update:
        report = add_images(
            folder,
            gallery,
            classifier,
            graph=graph,
            label_from=labels or "folder",
            replace=replace,
            on_step=lambda done, _: update(done),
        )
    _show_report(report, f"{report.added} images added, {len(report.gallery)} in {gallery}")


@app.command()
def query(
    gallery: GalleryPath,
    images: Images,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of neighbours of each image.")] = 5,
    model: ModelOption = DEFAULT_MODEL,
    exact: Annotated[bool, typer.Option(help="Compare with every image of the gallery, without its index.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line an image instead of tables.")] = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
) -> None:
    """Find the images of a gallery that are nearest to yours in the embedding space."""
    opened = Gallery.open(gallery, exact=exact)
    with spinner(f"loading {model}"):
        classifier = load(model, device=device, precision=precision)
    opened.require_weights(classifier.spec.weights_sha256)
    x_NCHW = np.stack(
        [image.prepare(image.read_channels(path, classifier.spec.channels), classifier.spec).x_CHW for path in images]
    )
    runtime = TorchRuntime(
        classifier.module, classifier.spec.embedding_layer, classifier.device, precision=classifier.precision
    )
    _, embedding_ND = runtime.logits_and_embeddings(x_NCHW)
    for path, neighbours in zip(images, opened.query(embedding_ND, k=k), strict=True):
        if as_json:
            items = [{"id": item.id, "label": item.label, "distance": item.distance} for item in neighbours]
            print_result(json.dumps({"picture": str(path), "neighbours": items}))
        else:
            _show_neighbours(path.name, neighbours)


@app.command()
def info(
    gallery: GalleryPath,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show a gallery's size, model, search index and hubs (images that are near to many others)."""
    opened = Gallery.open(gallery)
    facts = _facts(opened)
    if as_json:
        print_result(json.dumps(facts, indent=1))
        return
    table = Table(show_header=False)
    for name, value in _described(opened, facts):
        table.add_row(Text(name), Text(value))
    out.print(table)


def _kept(gallery: Path, total: int) -> AbstractContextManager[None]:
    return resumable(
        lambda: (
            f"{interrupted_images(gallery)} of {total} images are embedded and kept in {gallery}, not yet in the "
            "gallery"
        )
    )


def _show_report(report: BuildReport, summary: str) -> None:
    print_skipped(report.unreadable)
    print_result(f"{summary}\nindex: {_index(report.gallery)}")


def _show_neighbours(name: str, neighbours: Sequence[Neighbour]) -> None:
    table = Table(title=Text(name))
    table.add_column("distance", justify="right")
    for heading in ("label", "image"):
        table.add_column(heading, overflow="fold")
    for item in neighbours:
        table.add_row(f"{item.distance:.4f}", Text(item.label), Text(item.id))
    out.print(table)


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


def _described(gallery: Gallery, facts: dict[str, Any]) -> list[tuple[str, str]]:
    space = {"unit": "scaled to length 1", "raw": "raw, compared by plain L2"}[gallery.feature_space]
    return [
        ("images", f"{len(gallery)}, {facts['labels']} labels"),
        ("features", f"{gallery.dimensions} at {gallery.embedding_layer}, {space}"),
        ("model", f"{gallery.model}, weights {gallery.weights_sha256[:12]}"),
        ("index", _index(gallery)),
        ("hubs", _hubs(len(gallery), facts["hubness"])),
        ("on disk", f"{gallery.bytes / 1e6:.1f} MB"),
    ]


def _index(gallery: Gallery) -> str:
    record = gallery.index
    if record.kind == "exact":
        return "exact"
    return (
        f"{record.kind}, finds {record.recall:.1%} of the {record.k} nearest (measured on {record.queries} images, "
        f"search breadth {record.breadth}, {record.candidates} candidates compared exactly)"
    )


def _hubs(size: int, hubs: dict[str, Any] | None) -> str:
    if hubs is None:
        return "too few images to tell"
    text = (
        f"skewness {hubs['skewness']:.2f} (0: none; above 1: some images are neighbours of very many); "
        f"{hubs['id']} is among the {hubs['k']} nearest of {hubs['largest']} others"
    )
    return f"{text}, measured on {hubs['measured']} images" if hubs["measured"] < size else text
