"""``convlens project``: a map of a gallery."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

import convlens
from convlens import image
from convlens.cli.console import out, step
from convlens.cli.output import MANIFEST
from convlens.errors import RequestError
from convlens.folders import replaced
from convlens.gallery import Gallery, GalleryEntry
from convlens.inside.drawing_map import map_picture
from convlens.inside.projection import Method, Projection
from convlens.inside.projection import project as projected
from convlens.report.map import Thumbnails, render_map

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
    with step("drawing"), replaced(output) as draft:
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
    drawn = map_picture(found.coordinates_N2, labels, thumbnails, caption=caption)
    (draft / "map.png").write_bytes(image.encode_png(drawn, level=6))
    page = render_map(
        title=f"{len(entries)} pictures by {'t-SNE' if found.method == 'tsne' else 'PCA'}",
        facts=facts,
        explained=_explained(found),
        coordinates_N2=found.coordinates_N2,
        names=[entry.id for entry in entries],
        labels=labels,
        thumbnails=_sprite(thumbnails),
    )
    (draft / "map.html").write_text(page, encoding="utf-8")
    (draft / MANIFEST).write_text(json.dumps(_manifest(gallery, found), indent=1), encoding="utf-8")


def _sprite(thumbnails: Sequence[bytes]) -> Thumbnails | None:
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
    return Thumbnails(image.encode_jpeg(np.asarray(sheet), quality=80), SIDE, columns, chosen)


def _facts(gallery: Gallery, found: Projection) -> list[tuple[str, str]]:
    facts = [("model", gallery.model), ("weights", gallery.weights_sha256[:12]), ("features", gallery.feature_space)]
    if found.method == "pca":
        facts.append(("explained variance", " + ".join(f"{share:.1%}" for share in found.explained)))
    else:
        facts.append(("perplexity", f"{found.options['perplexity']:g}"))
        facts.append((f"variance in {found.options['dimensions']} dimensions", f"{found.explained[0]:.1%}"))
    facts.append(("trustworthiness", f"{found.trustworthiness:.3f}"))
    if found.agreement_of_features is not None and found.agreement_of_map is not None:
        said = f"{found.agreement_of_features:.1%} in the features, {found.agreement_of_map:.1%} on the map"
        facts.append(("neighbours of one label", said))
    if found.judged < len(gallery):
        facts.append(("measured on", f"{found.judged} of {len(gallery)} pictures"))
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
        "explained": list(found.explained),
        "trustworthiness": found.trustworthiness,
        "agreement_of_features": found.agreement_of_features,
        "agreement_of_map": found.agreement_of_map,
        "judged": found.judged,
    }
