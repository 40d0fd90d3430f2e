"""``convlens project``: a map of a gallery.

``convlens neighbours``: the nearest pictures in feature space, and in pixel space below them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.table import Table
from rich.text import Text

import convlens
from convlens import image
from convlens.cli.console import out, step
from convlens.cli.options import MODEL
from convlens.cli.results import MANIFEST
from convlens.errors import RequestError
from convlens.gallery import Gallery, GalleryEntry
from convlens.inspection.pixel_neighbours import (
    Comparison,
    NearImage,
    draw_neighbours,
    nearest_by_pixels,
    thumbnail_view,
    views_of_files,
    views_of_thumbnails,
)
from convlens.inspection.projection import Method, Projection, draw_map
from convlens.inspection.projection import project as projected
from convlens.models import Classifier, load
from convlens.report.pages import ThumbnailSheet, render_map
from convlens.runtime.torch_runtime import TorchRuntime
from convlens.types import Neighbour
from convlens.utils.files import replace_folder

TABLE = "coordinates.csv"
MOST_THUMBNAILS, SIDE = 5000, 48  # on the page: about 8 MB


def project(
    gallery: Annotated[Path, typer.Argument(help="A gallery of `convlens gallery build`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; replaced when a run of this command made it.")
    ],
    method: Annotated[
        Method, typer.Option(help="pca: the two largest directions; tsne: neighbours together.")
    ] = "tsne",
    perplexity: Annotated[float, typer.Option(help="For tsne: about how many neighbours count.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="For tsne: the same seed and gallery, the same map.")] = 0,
) -> None:
    """Lay out a gallery's pictures by their features, as a picture and as a page to zoom into."""
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / TABLE).is_file())):
        raise RequestError(f"{output} holds other things than a map; choose a new folder or empty it")
    opened = Gallery.open(gallery)
    entries = list(opened.entries)
    labels = [entry.label for entry in entries]
    with step(f"laying out {len(entries)} pictures by {method}"):
        found = projected(opened.features_ND, labels, method=method, perplexity=perplexity, seed=seed)
    with step("drawing"), replace_folder(output) as draft:
        _write(draft, opened, entries, found)
    said = [*(f"{name}: {value}" for name, value in _facts(opened, found)), f"map: {output / 'map.html'}"]
    out.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)


def _write(draft: Path, gallery: Gallery, entries: Sequence[GalleryEntry], found: Projection) -> None:
    np.save(draft / "coordinates_N2.npy", found.coordinates_N2, allow_pickle=False)
    with (draft / TABLE).open("w", newline="", encoding="utf-8") as file:
        rows = zip(entries, found.coordinates_N2.tolist(), strict=True)
        csv.writer(file).writerows([("id", "label", "x", "y"), *((e.id, e.label, x, y) for e, (x, y) in rows)])
    facts, labels = _facts(gallery, found), [entry.label for entry in entries]
    caption = "; ".join(f"{name}: {value}" for name, value in facts) + f". {_explained(found)}"
    thumbnails = [entry.thumbnail for entry in entries]
    drawn = draw_map(found.coordinates_N2, labels, thumbnails, caption=caption)
    (draft / "map.png").write_bytes(image.encode_png(drawn, level=6))
    page = render_map(
        title=f"{len(entries)} pictures by {'t-SNE' if found.method == 'tsne' else 'PCA'}",
        facts=facts,
        explanation=_explained(found),
        coordinates_N2=found.coordinates_N2,
        names=[entry.id for entry in entries],
        labels=labels,
        thumbnails=_sprite(thumbnails),
    )
    (draft / "map.html").write_text(page, encoding="utf-8")
    (draft / MANIFEST).write_text(json.dumps(_manifest(gallery, found), indent=1), encoding="utf-8")


def _sprite(thumbnails: Sequence[bytes]) -> ThumbnailSheet | None:
    """All thumbnails in one picture, or evenly chosen ones where there are too many for a page."""
    having = [n for n, data in enumerate(thumbnails) if data]
    if not having:
        return None
    chosen = having[:: math.ceil(len(having) / MOST_THUMBNAILS)]
    columns = math.ceil(math.sqrt(len(chosen)))
    sheet = Image.new("RGB", (columns * SIDE, math.ceil(len(chosen) / columns) * SIDE), (255, 255, 255))
    for n, point in enumerate(chosen):
        with Image.open(io.BytesIO(thumbnails[point])) as picture:
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (n % columns * SIDE, n // columns * SIDE))
    return ThumbnailSheet(image.encode_jpeg(np.asarray(sheet), quality=80), SIDE, columns, chosen)


def _facts(gallery: Gallery, found: Projection) -> list[tuple[str, str]]:
    facts = [("model", gallery.model), ("weights", gallery.weights_sha256[:12]), ("features", gallery.feature_space)]
    if found.method == "pca":
        facts.append(("explained variance", " + ".join(f"{share:.1%}" for share in found.explained_variance)))
    else:
        facts.append(("perplexity", f"{found.options['perplexity']:g}"))
        facts.append((f"variance in {found.options['dimensions']} dimensions", f"{found.explained_variance[0]:.1%}"))
    facts.append(("trustworthiness", f"{found.trustworthiness:.3f}"))
    if found.agreement_of_features is not None and found.agreement_of_map is not None:
        said = f"{found.agreement_of_features:.1%} in the features, {found.agreement_of_map:.1%} on the map"
        facts.append(("neighbours of one label", said))
    if found.sample_size < len(gallery):
        facts.append(("measured on", f"{found.sample_size} of {len(gallery)} pictures"))
    return facts


def _explained(found: Projection) -> str:
    if found.method == "pca":
        return (
            "The two directions in which the features differ most. Distances on the map are at most those of the "
            "features; what lies along other directions is not seen."
        )
    return (
        "Pictures with similar features lie together. How far groups lie apart, and how large they are, says little; "
        "trustworthiness is the share of neighbours on the map that are neighbours indeed."
    )


def _manifest(gallery: Gallery, found: Projection) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": gallery.model,
        "weights_sha256": gallery.weights_sha256,
        "feature_space": gallery.feature_space,
        "pictures": len(gallery),
        "method": found.method,
        "options": dict(found.options),
        "explained": list(found.explained_variance),
        "trustworthiness": found.trustworthiness,
        "agreement_of_features": found.agreement_of_features,
        "agreement_of_map": found.agreement_of_map,
        "judged": found.sample_size,
    }


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
    data = image.encode_png(draw_neighbours(compared, caption=caption), level=6)
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
) -> Iterator[Comparison]:
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
        by_pixels = nearest_by_pixels(queries, views, k=k, excluded=itself)
    for n, path in enumerate(paths):
        by_features = [one for one in near[n] if row[one.id] not in itself[n]][:k]
        entries = [gallery.entries[one.row] for one in by_pixels[n]]
        yield Comparison(
            path.name,
            prepared[n].view_HWC,
            [NearImage(one.label or one.id, one.distance, one.thumbnail) for one in by_features],
            [
                NearImage(entry.label or entry.id, one.distance, entry.thumbnail)
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


def _show(one: Comparison) -> None:
    table = Table(title=Text(one.name))
    for heading in ("by features", "distance", "by pixels", "distance"):
        table.add_column(heading, justify="right" if heading == "distance" else "left", overflow="fold")
    for feature, pixel in zip(one.by_features, one.by_pixels, strict=True):
        cells = feature.label, f"{feature.distance:.4f}", pixel.label, f"{pixel.distance:.0f}"
        table.add_row(*map(Text, cells))
    out.print(table)
