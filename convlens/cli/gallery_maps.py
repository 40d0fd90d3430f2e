"""A gallery as images: ``project`` draws a map of it, ``neighbours`` compares feature space with pixel space."""

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
from convlens.cli.console import out, print_result, spinner
from convlens.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    FigurePath,
    Images,
    ModelOption,
    PrecisionOption,
    ReplacedFolder,
)
from convlens.cli.outputs import require_png, require_replaceable
from convlens.cli.results import MANIFEST, write_figure
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
from convlens.inspection.projection import project as project_features
from convlens.models import Classifier, load
from convlens.report.pages import ThumbnailSheet, render_map
from convlens.runtime.torch_runtime import TorchRuntime
from convlens.types import Neighbour
from convlens.utils.csv_files import Cell, write_csv
from convlens.utils.files import replace_folder, require_writable_file

TABLE, PAGE = "coordinates.csv", "map.html"
_MAX_THUMBNAILS, _THUMBNAIL_SIDE = 5000, 48  # on the page: about 8 MB
# Between features of length 1. The same image again is nearer than this, whichever machine computed its features.
_SAME_IMAGE = 1e-4
_NEIGHBOUR_FIELDS = ("query", "space", "rank", "label", "distance")


def project(
    gallery: Annotated[Path, typer.Argument(help="Folder written by `convlens gallery build`.")],
    output: ReplacedFolder,
    method: Annotated[
        Method, typer.Option(help="pca: the two directions of largest variance; tsne: neighbours stay together.")
    ] = "tsne",
    perplexity: Annotated[
        float, typer.Option(help="t-SNE: effective number of neighbours of each image; lowered in small galleries.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="t-SNE: random seed.")] = 0,
) -> None:
    """Project a gallery's features to two dimensions: a map as an image and as a page to zoom into."""
    require_replaceable(output, marker=TABLE, contents="a map")
    opened = Gallery.open(gallery)
    entries = list(opened.entries)
    labels = [entry.label for entry in entries]
    with spinner(f"projecting {len(entries)} images by {method}"):
        projection = project_features(opened.features_ND, labels, method=method, perplexity=perplexity, seed=seed)
    with spinner("drawing"), replace_folder(output) as draft:
        _write_map(draft, opened, entries, projection)
    for name, value in _facts(opened, projection):
        print_result(f"{name}: {value}")
    print_result(f"map: {output / PAGE}")


def neighbours(
    images: Images,
    gallery: Annotated[Path, typer.Option(help="Folder written by `convlens gallery build`.")],
    output: FigurePath,
    k: Annotated[int, typer.Option("-k", min=1, max=20, help="Number of neighbours in each space.")] = 5,
    folder: Annotated[
        Path | None,
        typer.Option("--pictures", help="Folder of the gallery's images, to compare pixels. Default: its thumbnails."),
    ] = None,
    keep_self: Annotated[bool, typer.Option(help="Keep the query image itself if it is in the gallery.")] = False,
    table: Annotated[Path | None, typer.Option(help="Also write the neighbours to this CSV file.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
) -> None:
    """Draw each image's nearest neighbours in feature space and in pixel space."""
    require_png(output)
    if table is not None:
        require_writable_file(table)
    opened = Gallery.open(gallery)
    with spinner(f"loading {model}"):
        classifier = load(model, device=device, precision=precision)
    opened.require_weights(classifier.spec.weights_sha256)
    queries = [image.read_channels(path, classifier.spec.channels) for path in images]
    names = [path.name for path in images]
    rows = list(_compare(opened, classifier, names, queries, k=k, folder=folder, keep_self=keep_self))
    space = "directions of the features" if opened.feature_space == "unit" else "features"
    views = f"what the network sees, {_sides(classifier.spec.input_size)}" if folder else "thumbnails"
    caption = (
        f"Euclidean distances. Above: {space} at {opened.embedding_layer} of {opened.model}. "
        f"Below: pixel values 0..255 of {views}."
    )
    write_figure(output, draw_neighbours(rows, caption=caption))
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        write_csv(table, _NEIGHBOUR_FIELDS, _neighbour_rows(images, rows))
    for row in rows:
        _show_neighbours(row)
    print_result(f"figure: {output}")


def _write_map(draft: Path, gallery: Gallery, entries: Sequence[GalleryEntry], projection: Projection) -> None:
    xy_N2 = projection.coordinates_N2
    np.save(draft / "coordinates_N2.npy", xy_N2, allow_pickle=False)
    with (draft / TABLE).open("w", newline="", encoding="utf-8") as file:
        rows = zip(entries, xy_N2.tolist(), strict=True)
        csv.writer(file).writerows([("id", "label", "x", "y"), *((e.id, e.label, x, y) for e, (x, y) in rows)])
    facts, labels = _facts(gallery, projection), [entry.label for entry in entries]
    caption = "; ".join(f"{name}: {value}" for name, value in facts) + f". {_how_to_read(projection)}"
    thumbnails = [entry.thumbnail for entry in entries]
    map_HWC = draw_map(xy_N2, labels, thumbnails, caption=caption)
    (draft / "map.png").write_bytes(image.encode_png(map_HWC, level=6))
    page = render_map(
        title=f"{len(entries)} images by {'t-SNE' if projection.method == 'tsne' else 'PCA'}",
        facts=facts,
        explanation=_how_to_read(projection),
        coordinates_N2=xy_N2,
        names=[entry.id for entry in entries],
        labels=labels,
        thumbnails=_sprite(thumbnails),
    )
    (draft / PAGE).write_text(page, encoding="utf-8")
    (draft / MANIFEST).write_text(json.dumps(_manifest(gallery, projection), indent=1), encoding="utf-8")


def _sprite(thumbnails: Sequence[bytes]) -> ThumbnailSheet | None:
    """All thumbnails in one image, or evenly chosen ones where there are too many for a page."""
    present = [n for n, data in enumerate(thumbnails) if data]
    if not present:
        return None
    chosen = present[:: math.ceil(len(present) / _MAX_THUMBNAILS)]
    side, columns = _THUMBNAIL_SIDE, math.ceil(math.sqrt(len(chosen)))
    sheet = Image.new("RGB", (columns * side, math.ceil(len(chosen) / columns) * side), (255, 255, 255))
    for n, point in enumerate(chosen):
        with Image.open(io.BytesIO(thumbnails[point])) as thumbnail:
            small = thumbnail.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (n % columns * side, n // columns * side))
    return ThumbnailSheet(image.encode_jpeg(np.asarray(sheet), quality=80), side, columns, chosen)


def _facts(gallery: Gallery, projection: Projection) -> list[tuple[str, str]]:
    facts = [("model", gallery.model), ("weights", gallery.weights_sha256[:12]), ("features", gallery.feature_space)]
    if projection.method == "pca":
        facts.append(("explained variance", " + ".join(f"{share:.1%}" for share in projection.explained_variance)))
    else:
        facts.append(("perplexity", _perplexity(projection)))
        facts.append(
            (f"variance in {projection.options['dimensions']} dimensions", f"{projection.explained_variance[0]:.1%}")
        )
    facts.append(("5 nearest on the map among the 5 nearest in the features", f"{projection.shared_neighbours:.1%}"))
    facts.append(("trustworthiness", f"{projection.trustworthiness:.3f}"))
    if projection.agreement_of_features is not None and projection.agreement_of_map is not None:
        shares = f"{projection.agreement_of_features:.1%} in the features, {projection.agreement_of_map:.1%} on the map"
        facts.append(("neighbours of one label", shares))
    if projection.sample_size < len(gallery):
        facts.append(("measured on", f"{projection.sample_size} of {len(gallery)} images"))
    return facts


def _perplexity(projection: Projection) -> str:
    used, asked = projection.options["perplexity"], projection.options.get("perplexity_asked_for")
    if asked is None:
        return f"{used:g}"
    count = len(projection.coordinates_N2)
    return f"{used:.3g}, lowered from {asked:g} because {count} images allow no more"


def _how_to_read(projection: Projection) -> str:
    if projection.method == "pca":
        return (
            "The two directions in which the features vary most. Distances on the map are at most those between the "
            "features; variation along other directions is not visible."
        )
    return (
        "Images with similar features lie together. The distances between groups and the sizes of groups mean little. "
        "Trustworthiness is no share of neighbours: it weighs those that are not among the nearest in the features by "
        "their rank there."
    )


def _manifest(gallery: Gallery, projection: Projection) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": gallery.model,
        "weights_sha256": gallery.weights_sha256,
        "feature_space": gallery.feature_space,
        "pictures": len(gallery),
        "method": projection.method,
        "options": dict(projection.options),
        "explained": list(projection.explained_variance),
        "trustworthiness": projection.trustworthiness,
        "shared": projection.shared_neighbours,
        "agreement_of_features": projection.agreement_of_features,
        "agreement_of_map": projection.agreement_of_map,
        "judged": projection.sample_size,
    }


def _compare(
    gallery: Gallery,
    classifier: Classifier,
    names: Sequence[str],
    queries: Sequence[image.Picture],
    *,
    k: int,
    folder: Path | None,
    keep_self: bool,
) -> Iterator[Comparison]:
    prepared = [image.prepare(query, classifier.spec) for query in queries]
    runtime = TorchRuntime(
        classifier.module, classifier.spec.embedding_layer, classifier.device, precision=classifier.precision
    )
    with spinner("searching neighbours"):
        _, embedding_ND = runtime.logits_and_embeddings(np.stack([item.x_CHW for item in prepared]))
        # One more than asked for: the query image itself may be among them.
        nearest = gallery.query(embedding_ND, k=min(k + (not keep_self), len(gallery)))
        row = {entry.id: n for n, entry in enumerate(gallery.entries)}
        excluded = [frozenset[int]() if keep_self else _same_image(neighbours, row) for neighbours in nearest]
        if folder is None:
            side = _thumbnail_side(gallery)
            pixels = [
                thumbnail_view(Image.fromarray(image.display_image(query, classifier.spec)), side) for query in queries
            ]
            views = views_of_thumbnails(gallery)
        else:
            pixels, views = [item.view_HWC for item in prepared], views_of_files(gallery, folder, classifier.spec)
        by_pixels = nearest_by_pixels(pixels, views, k=k, excluded=excluded)
    for n, name in enumerate(names):
        by_features = [item for item in nearest[n] if row[item.id] not in excluded[n]][:k]
        entries = [gallery.entries[item.row] for item in by_pixels[n]]
        yield Comparison(
            name,
            prepared[n].display_HWC,
            [NearImage(item.label or item.id, item.distance, item.thumbnail) for item in by_features],
            [
                NearImage(entry.label or entry.id, item.distance, entry.thumbnail)
                for entry, item in zip(entries, by_pixels[n], strict=True)
            ],
        )


def _same_image(neighbours: Sequence[Neighbour], row: dict[str, int]) -> frozenset[int]:
    """The nearest neighbour's row if that is the query image itself, else none."""
    return frozenset(row[item.id] for item in neighbours[:1] if item.distance < _SAME_IMAGE)


def _sides(size: tuple[int, int]) -> str:
    height, width = size
    return f"{height} pixels a side" if height == width else f"{width}×{height} pixels"


def _thumbnail_side(gallery: Gallery) -> int:
    first: bytes = gallery.entries[0].thumbnail
    if not first:
        raise RequestError("the gallery keeps no thumbnails; name the folder of its images by --pictures")
    with Image.open(io.BytesIO(first)) as thumbnail:
        return thumbnail.width


def _neighbour_rows(images: Sequence[Path], rows: Sequence[Comparison]) -> Iterator[tuple[Cell, ...]]:
    for path, row in zip(images, rows, strict=True):
        for space, nearest in (("features", row.by_features), ("pixels", row.by_pixels)):
            for rank, near in enumerate(nearest, start=1):
                yield str(path), space, rank, near.label, near.distance


def _show_neighbours(row: Comparison) -> None:
    table = Table(title=Text(row.name))
    for heading in ("by features", "distance", "by pixels", "distance"):
        table.add_column(heading, justify="right" if heading == "distance" else "left", overflow="fold")
    for feature, pixel in zip(row.by_features, row.by_pixels, strict=True):
        cells = feature.label, f"{feature.distance:.4f}", pixel.label, f"{pixel.distance:.0f}"
        table.add_row(*map(Text, cells))
    out.print(table)
