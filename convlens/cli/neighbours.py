"""``convlens neighbours``: the nearest pictures in feature space, and in pixel space below them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.table import Table
from rich.text import Text

from convlens import image
from convlens.cli.console import out, step
from convlens.cli.options import MODEL
from convlens.errors import RequestError
from convlens.gallery import Gallery
from convlens.inside.drawing_neighbours import Compared, Near, neighbours_figure
from convlens.inside.pixels import nearest_by_pixels, thumbnail_view, views_of_files, views_of_thumbnails
from convlens.models import Classifier, load
from convlens.runtime.torch_ import TorchRuntime
from convlens.types import Neighbour

ENDING = ".png"
ITSELF = 1e-4  # of features whose length is 1: the same picture once more, whoever computed it


def neighbours(
    pictures: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Pictures to find neighbours of.")],
    gallery: Annotated[Path, typer.Option(help="A gallery of `convlens gallery build`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The figure to write, a .png.")],
    k: Annotated[int, typer.Option("-k", min=1, max=20, help="Neighbours in each space.")] = 5,
    folder: Annotated[
        Path | None,
        typer.Option("--pictures", help="The gallery's pictures, to compare pixels of. Default: its thumbnails."),
    ] = None,
    keep_self: Annotated[bool, typer.Option(help="Let a picture of the gallery be its own neighbour.")] = False,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw the lecture's figure: pictures, their nearest by features, and their nearest by plain pixels."""
    if output.suffix.lower() != ENDING:
        raise RequestError(f"{output} should end in {ENDING}: the figure is written as PNG")
    opened = Gallery.open(gallery)
    with step(f"loading {model}"):
        classifier = load(model, device=device)
    opened.require_weights(classifier.spec.weights_sha256)
    read = [image.read(path) for path in pictures]
    compared = list(_compared(opened, classifier, pictures, read, k, folder, keep_self))
    space = "directions of the features" if opened.feature_space == "unit" else "features"
    sides = f"what the network sees, {classifier.spec.crop} pixels a side" if folder else "thumbnails"
    caption = (
        f"Euclidean distances. Above: {space} at {opened.embedding_layer} of {opened.model}. "
        f"Below: pixel values 0..255 of {sides}."
    )
    data = image.encode_png(neighbours_figure(compared, caption=caption), level=6)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(data)
    for one in compared:
        _show(one)
    out.print(f"figure: {output}", markup=False, highlight=False, soft_wrap=True)


def _compared(
    gallery: Gallery,
    classifier: Classifier,
    paths: Sequence[Path],
    pictures: Sequence[Image.Image],
    k: int,
    folder: Path | None,
    keep_self: bool,
) -> Iterator[Compared]:
    prepared = [image.prepare(picture, classifier.spec) for picture in pictures]
    runtime = TorchRuntime(classifier.module, classifier.spec.embedding_layer, classifier.device)
    with step("looking for neighbours"):
        _, embedding_ND = runtime.logits_and_embeddings(np.stack([each.x_CHW for each in prepared]))
        # One more, of which the picture itself may be one.
        near = gallery.query(embedding_ND, k=min(k + (not keep_self), len(gallery)))
        row = {entry.id: n for n, entry in enumerate(gallery.entries)}
        itself = [frozenset[int]() if keep_self else _itself(found, row) for found in near]
        if folder is None:
            side = _thumbnail_side(gallery)
            queries = [thumbnail_view(picture, side) for picture in pictures]
            views = views_of_thumbnails(gallery)
        else:
            queries, views = [each.view_HWC for each in prepared], views_of_files(gallery, folder, classifier.spec)
        by_pixels = nearest_by_pixels(queries, views, k=k, left_out=itself)
    for n, path in enumerate(paths):
        by_features = [one for one in near[n] if row[one.id] not in itself[n]][:k]
        entries = [gallery.entries[one.row] for one in by_pixels[n]]
        yield Compared(
            path.name,
            prepared[n].view_HWC,
            [Near(one.label or one.id, one.distance, one.thumbnail) for one in by_features],
            [
                Near(entry.label or entry.id, one.distance, entry.thumbnail)
                for entry, one in zip(entries, by_pixels[n], strict=True)
            ],
        )


def _itself(found: Sequence[Neighbour], row: dict[str, int]) -> frozenset[int]:
    return frozenset(row[one.id] for one in found[:1] if one.distance < ITSELF)


def _thumbnail_side(gallery: Gallery) -> int:
    first: bytes = gallery.entries[0].thumbnail
    if not first:
        raise RequestError("the gallery keeps no thumbnails; name the folder of its pictures by --pictures")
    with Image.open(io.BytesIO(first)) as picture:
        return picture.width


def _show(one: Compared) -> None:
    table = Table(title=Text(one.name))
    for heading in ("by features", "distance", "by pixels", "distance"):
        table.add_column(heading, justify="right" if heading == "distance" else "left", overflow="fold")
    for feature, pixel in zip(one.by_features, one.by_pixels, strict=True):
        cells = feature.label, f"{feature.distance:.4f}", pixel.label, f"{pixel.distance:.0f}"
        table.add_row(*map(Text, cells))
    out.print(table)
