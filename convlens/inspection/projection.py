"""Principal components of more vectors than memory holds.

How well neighbours survive: on a map, and between pictures of one label.

Features laid out in two dimensions, and how far the map may be trusted.

A map of pictures as one picture: thumbnails at their places, framed in the colour of their label.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from convlens.errors import RequestError
from convlens.gallery.vectors import nearest_others, sample_rows
from convlens.types import Bytes8, Floats, Ints
from convlens.visualization.layout import add_margin, hstack, text_image, vstack

CHUNK = 4096


@dataclass(frozen=True)
class Principal:
    """``coordinates_NP`` of the vectors along ``components_PD``, and the share of the variance along each."""

    coordinates_NP: Floats
    components_PD: Floats
    mean_D: Floats
    explained_P: Floats


def principal_components(vectors_ND: Floats, count: int) -> Principal:
    """The ``count`` directions of largest variance of centred vectors (Pearson 1901), in float64, exact.

    Vectors are read in chunks, twice and once more for their coordinates, so that a memory-mapped array need not fit in
    memory; D×D numbers must. The largest entry of each direction is positive, which makes signs the same everywhere.
    """
    mean_D = sum((chunk.sum(axis=0) for chunk in _chunks(vectors_ND)), np.zeros(vectors_ND.shape[1])) / len(vectors_ND)
    scatter_DD = np.zeros((len(mean_D), len(mean_D)))
    for chunk_BD in _chunks(vectors_ND):
        centred_BD = chunk_BD - mean_D
        scatter_DD += centred_BD.T @ centred_BD
    variance_D, directions_DD = np.linalg.eigh(scatter_DD)
    components_PD = directions_DD[:, ::-1][:, :count].T
    largest_P = np.abs(components_PD).argmax(axis=1)
    components_PD = components_PD * np.sign(components_PD[np.arange(len(largest_P)), largest_P])[:, None]
    coordinates_NP = np.concatenate([(chunk - mean_D) @ components_PD.T for chunk in _chunks(vectors_ND)])
    share_P = variance_D[::-1][:count].clip(0) / max(float(variance_D.clip(0).sum()), np.finfo(float).tiny)
    return Principal(coordinates_NP, components_PD, mean_D, share_P)


def _chunks(vectors_ND: Floats) -> Iterator[Floats]:
    """Float64 copies, one at a time."""
    for first in range(0, len(vectors_ND), CHUNK):
        yield np.asarray(vectors_ND[first : first + CHUNK], np.float64)


NEIGHBOURS = 5


def trustworthiness(features_ND: Floats, map_N2: Floats) -> float:
    """How many of each point's 5 nearest on the map are near in the features, too (Venna & Kaski 2001); 1 is all."""
    from sklearn.manifold import trustworthiness as measured  # slow to load

    fewer = min(NEIGHBOURS, (len(map_N2) - 1) // 2)
    return float(measured(np.asarray(features_ND, np.float64), map_N2, n_neighbors=fewer))


def label_agreement(vectors_ND: Floats, labels: Sequence[str], judged_M: Ints) -> float | None:
    """Of the 5 nearest of each judged vector, itself left out, the share that bears its label.

    Only vectors whose label is there twice are judged: others cannot have a neighbour of their own. None where there
    are none, and where all bear one label.
    """
    label_N = np.unique(np.asarray(labels, str), return_inverse=True)[1]
    counts = np.bincount(label_N)
    judged = judged_M[counts[label_N[judged_M]] > 1]
    if not len(judged) or len(counts) == 1:
        return None
    nearest_MK = nearest_others(vectors_ND, judged, k=min(NEIGHBOURS, len(label_N) - 1))
    return float((label_N[nearest_MK] == label_N[judged][:, None]).mean())


Method = Literal["pca", "tsne"]
REDUCED = 50  # dimensions that t-SNE starts from, as usual (van der Maaten & Hinton 2008)


@dataclass(frozen=True)
class Projection:
    """Where each vector lies on the map, ``coordinates_N2`` float64, centred.

    ``explained`` is the share of the features' variance along both axes (PCA), or that of the dimensions that t-SNE was
    given. ``trustworthiness`` 0..1 says how many of the map's neighbours are neighbours indeed (Venna & Kaski 2001), 5
    of each; ``agreement`` how many of 5 neighbours bear the same label, ``of_features`` and ``of_map``, None where no
    label is there twice. ``judged`` is how many pictures these were measured on.
    """

    method: Method
    coordinates_N2: Floats
    explained: tuple[float, ...]
    trustworthiness: float
    agreement_of_features: float | None
    agreement_of_map: float | None
    judged: int
    options: Mapping[str, Any]


def project(
    features_ND: Floats,
    labels: Sequence[str],
    *,
    method: Method = "pca",
    perplexity: float = 30.0,
    seed: int = 0,
    threads: int | None = None,
) -> Projection:
    """Lay out the features of a gallery.

    ``pca`` keeps the two directions of largest variance; exact, distances on the map are at most those of the features.
    ``tsne`` keeps neighbours together (van der Maaten & Hinton 2008, by openTSNE): from the first 50 principal
    components, started at the first two, the same for the same ``seed`` and data on one machine; distances between far
    groups mean little. ``perplexity`` is about how many neighbours count, below a third of the pictures. RequestError
    for fewer than 5 vectors, and for a perplexity that they do not allow.
    """
    count = len(features_ND)
    if count < 5:
        raise RequestError(f"{count} pictures make no map; use a gallery of 5 or more")
    if method == "pca":
        found = principal_components(features_ND, 2)
        coordinates_N2, explained = found.coordinates_NP, tuple(found.explained_P.tolist())
        options: dict[str, Any] = {}
    else:
        _require_perplexity(perplexity, count)
        found = principal_components(features_ND, min(REDUCED, count - 1, features_ND.shape[1]))
        coordinates_N2 = _tsne(found.coordinates_NP, perplexity, seed, threads)
        explained = (float(found.explained_P.sum()),)
        options = {"perplexity": perplexity, "seed": seed, "dimensions": found.coordinates_NP.shape[1]}
    judged_N = sample_rows(count, MOST_JUDGED)
    return Projection(
        method,
        coordinates_N2,
        explained,
        trustworthiness(features_ND[judged_N], coordinates_N2[judged_N]),
        label_agreement(features_ND, labels, judged_N),
        label_agreement(coordinates_N2, labels, judged_N),
        len(judged_N),
        options,
    )


def _require_perplexity(perplexity: float, count: int) -> None:
    limit = (count - 1) / 3
    if not 1 <= perplexity <= limit:
        raise RequestError(
            f"perplexity={perplexity:g} with {count} pictures; use 1..{int(limit)}, a third of them at most",
            field="perplexity",
        )


def _tsne(reduced_NP: Floats, perplexity: float, seed: int, threads: int | None) -> Floats:
    from openTSNE import TSNE  # here, for it takes a second to load

    first_N2 = reduced_NP[:, :2] / max(float(reduced_NP[:, 0].std()), 1e-12) * 1e-4
    made = TSNE(perplexity=perplexity, initialization=first_N2, random_state=seed, n_jobs=threads or -1)
    coordinates_N2 = np.asarray(made.fit(reduced_NP), np.float64)
    return np.asarray(coordinates_N2 - coordinates_N2.mean(axis=0))


MOST_JUDGED = 2000
SHEET, COLOURS = 1600, 12
_GREY = (138, 143, 152)
_SWATCH, _SIZE, _COLUMN = 14, 15, 300
_HIDDEN = 0.5  # of a thumbnail, at most, by those drawn before it; else it is a dot
Colour = tuple[int, int, int]


def colours_of(labels: Sequence[str]) -> dict[str, Colour]:
    """The commonest labels' colours, evenly around the circle; what has none is drawn grey."""
    common = [label for label, _ in Counter(label for label in labels if label).most_common(COLOURS)]
    return {label: _colour(n / len(common)) for n, label in enumerate(common)}


def map_picture(coordinates_N2: Floats, labels: Sequence[str], thumbnails: Sequence[bytes], *, caption: str) -> Bytes8:
    """A white square with every picture at its place, the second axis upwards, a legend and the caption below.

    Where too little of a thumbnail would be seen, and where there is none, a dot of the label's colour stands for it.
    """
    colours = colours_of(labels)
    sheet = Image.new("RGB", (SHEET, SHEET), (255, 255, 255))
    side = _side(len(coordinates_N2), has_thumbnails=any(thumbnails))
    taken = np.zeros((SHEET, SHEET), bool)
    places = _places(coordinates_N2, side)
    colour_N = [colours.get(label, _GREY) for label in labels]
    each = zip(places, thumbnails, colour_N, strict=True)
    as_pictures = [_drawn(sheet, taken, place, side, data, colour) for place, data, colour in each]
    pen = ImageDraw.Draw(sheet)
    for (x, y), colour, drawn in zip(places, colour_N, as_pictures, strict=True):
        if not drawn:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    parts = [np.asarray(sheet), *_legend(colours, Counter(labels)), text_image(caption, size=_SIZE, width=SHEET)]
    return add_margin(vstack(parts, gap=12), margin=16)


def _drawn(
    sheet: Image.Image, taken: np.ndarray, place: tuple[int, int], side: int, data: bytes, colour: Colour
) -> bool:
    x, y = place[0] - side // 2, place[1] - side // 2
    spot = taken[max(y, 0) : y + side, max(x, 0) : x + side]
    if not data or spot.mean() > _HIDDEN:
        return False
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB").resize((side - 4, side - 4), Image.Resampling.LANCZOS)
    sheet.paste(colour, (x, y, x + side, y + side))
    sheet.paste(small, (x + 2, y + 2))
    spot[:] = True
    return True


def _side(count: int, *, has_thumbnails: bool) -> int:
    """Of a thumbnail, so that they would fill about the sheet if they lay evenly."""
    return int(min(72, max(20, 1.1 * SHEET / math.sqrt(count)))) if has_thumbnails else 6


def _places(coordinates_N2: Floats, side: int) -> list[tuple[int, int]]:
    low_2, high_2 = coordinates_N2.min(axis=0), coordinates_N2.max(axis=0)
    share = (SHEET - side - 8) / max(float((high_2 - low_2).max()), 1e-12)
    middle_2 = (low_2 + high_2) / 2
    across, up = (share * (coordinates_N2 - middle_2)).T
    return [(round(SHEET / 2 + x), round(SHEET / 2 - y)) for x, y in zip(across.tolist(), up.tolist(), strict=True)]


def _legend(colours: dict[str, Colour], counts: Counter[str]) -> list[Bytes8]:
    items = []
    for label, colour in colours.items():
        swatch = np.full((_SWATCH, _SWATCH, 3), colour, np.uint8)
        words = text_image(f"{label[:28]} ({counts[label]})", size=_SIZE, width=_COLUMN - _SWATCH - 8)
        items.append(hstack([swatch, words], gap=8))
    columns = SHEET // (_COLUMN + 12)
    return [hstack(items[n : n + columns], gap=12) for n in range(0, len(items), columns)]


def _colour(hue: float) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)
