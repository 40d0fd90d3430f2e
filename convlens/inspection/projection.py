"""Embeddings laid out in two dimensions by PCA or t-SNE: coordinates, how far to trust them, and the drawn map."""

from __future__ import annotations

import colorsys
import io
import logging
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

_log = logging.getLogger(__name__)

Method = Literal["pca", "tsne"]
Colour = tuple[int, int, int]
_CHUNK = 4096  # vectors in memory at a time, as float64
_TSNE_DIMENSIONS = 50  # that t-SNE starts from, as usual (van der Maaten & Hinton 2008)
_NEIGHBOURS = 5  # per point, for trustworthiness and label agreement
_LEAST = 5  # images: with fewer, the perplexity would be below 1, where each counts a part of a neighbour
_LARGEST_SAMPLE = 2000  # points that those are measured on
_SHEET = 1600  # pixels
_COLOURS, _GREY = 12, (138, 143, 152)
_SWATCH, _SIZE, _COLUMN = 14, 15, 300
_MOST_HIDDEN = 0.5  # of a thumbnail, by those drawn before it; else it is a dot


# ---- principal components


@dataclass(frozen=True)
class PrincipalComponents:
    """``coordinates_NP`` of the vectors along ``components_PD``, and the share of the variance along each."""

    coordinates_NP: Floats
    components_PD: Floats
    explained_P: Floats


def principal_components(vectors_ND: Floats, count: int) -> PrincipalComponents:
    """The ``count`` directions of largest variance of centred vectors (Pearson 1901), in float64, exact.

    Vectors may be a memory-mapped array larger than memory; D×D numbers must fit.
    """
    # Three passes over chunks: the mean, the scatter matrix, the coordinates. Centring before the products avoids the
    # cancellation of E[xx'] − E[x]E[x]'.
    mean_D = sum((chunk.sum(axis=0) for chunk in _chunks(vectors_ND)), np.zeros(vectors_ND.shape[1])) / len(vectors_ND)
    scatter_DD = np.zeros((len(mean_D), len(mean_D)))
    for chunk_BD in _chunks(vectors_ND):
        centred_BD = chunk_BD - mean_D
        scatter_DD += centred_BD.T @ centred_BD
    variance_D, directions_DD = np.linalg.eigh(scatter_DD)
    components_PD = directions_DD[:, ::-1][:, :count].T
    # An eigenvector's sign is arbitrary; with the largest entry positive it is the same everywhere.
    largest_P = np.abs(components_PD).argmax(axis=1)
    components_PD = components_PD * np.sign(components_PD[np.arange(len(largest_P)), largest_P])[:, None]
    coordinates_NP = np.concatenate([(chunk - mean_D) @ components_PD.T for chunk in _chunks(vectors_ND)])
    share_P = variance_D[::-1][:count].clip(0) / max(float(variance_D.clip(0).sum()), np.finfo(float).tiny)
    return PrincipalComponents(coordinates_NP, components_PD, share_P)


def _chunks(vectors_ND: Floats) -> Iterator[Floats]:
    for first in range(0, len(vectors_ND), _CHUNK):
        yield np.asarray(vectors_ND[first : first + _CHUNK], np.float64)


# ---- how far a map can be trusted


def trustworthiness(features_ND: Floats, map_N2: Floats) -> float:
    """How near in the features each point's 5 nearest on the map are, by ranks (Venna & Kaski 2001); 1 is nearest.

    It is no share of neighbours: one that is not among the 5 nearest in the features costs little where it comes soon
    after. ``shared_neighbours`` is that share.
    """
    from sklearn.manifold import trustworthiness as measured  # slow to load

    # Mild: .917 for t-SNE and .592 for PCA of 509 images, where .464 and .043 of the 5 nearest on the map are among the
    # 5 nearest in the features. sklearn defines it for fewer neighbours than half the points.
    neighbours = min(_NEIGHBOURS, (len(map_N2) - 1) // 2)
    return float(measured(np.asarray(features_ND, np.float64), map_N2, n_neighbors=neighbours))


def shared_neighbours(features_ND: Floats, map_N2: Floats) -> float:
    """The share of each point's 5 nearest on the map that are among its 5 nearest in the features."""
    rows_M, k = np.arange(len(map_N2)), min(_NEIGHBOURS, len(map_N2) - 1)
    on_map_MK, in_features_MK = (nearest_others(each, rows_M, k=k) for each in (map_N2, features_ND))
    return float((on_map_MK[:, :, None] == in_features_MK[:, None, :]).any(axis=2).mean())


def label_agreement(vectors_ND: Floats, labels: Sequence[str], sample_M: Ints) -> float | None:
    """Of the 5 nearest vectors of each in the sample, itself left out, the share with the same label.

    Only vectors whose label occurs twice count: others cannot have a neighbour with theirs. None where there are none,
    and where all labels are the same.
    """
    label_N = np.unique(np.asarray(labels, str), return_inverse=True)[1]
    counts = np.bincount(label_N)
    sample = sample_M[counts[label_N[sample_M]] > 1]
    if not len(sample) or len(counts) == 1:
        return None
    nearest_MK = nearest_others(vectors_ND, sample, k=min(_NEIGHBOURS, len(label_N) - 1))
    return float((label_N[nearest_MK] == label_N[sample][:, None]).mean())


# ---- layout


@dataclass(frozen=True)
class Projection:
    """Where each vector lies on the map: ``coordinates_N2``, float64, centred.

    ``explained_variance`` is the features' share of variance along both axes (PCA), or that of the dimensions that
    t-SNE starts from. ``trustworthiness`` (0..1) compares the map's 5 nearest neighbours with the features' own by
    their ranks (Venna & Kaski 2001), ``shared_neighbours`` is the share of them that are among the features' own 5;
    ``agreement_of_features`` and ``agreement_of_map`` are the shares of 5 neighbours with the same label, None where no
    label occurs twice. ``sample_size`` is how many images these were measured on.
    """

    method: Method
    coordinates_N2: Floats
    explained_variance: tuple[float, ...]
    trustworthiness: float
    agreement_of_features: float | None
    agreement_of_map: float | None
    sample_size: int
    options: Mapping[str, Any]
    shared_neighbours: float


def project(
    features_ND: Floats,
    labels: Sequence[str],
    *,
    method: Method = "pca",
    perplexity: float = 30.0,
    seed: int = 0,
    threads: int | None = None,
) -> Projection:
    """Lay out a gallery's features.

    ``pca`` keeps the two directions of largest variance; exact, distances on the map are at most those of the features.
    ``tsne`` keeps neighbours together (van der Maaten & Hinton 2008, by openTSNE): from the first 50 principal
    components, started at the first two, the same for the same ``seed`` and data on one machine; distances between
    distant groups mean little. ``perplexity`` is about how many neighbours count; where it is above a third of the
    other images, it is lowered to that, and ``options`` hold both (``perplexity_asked_for``). RequestError for fewer
    than 5 vectors, and for a perplexity below 1.
    """
    count = len(features_ND)
    if count < _LEAST:
        raise RequestError(
            f"{count} {'image makes' if count == 1 else 'images make'} no map; use a gallery of {_LEAST} or more"
        )
    options: dict[str, Any] = {}
    if method == "pca":
        components = principal_components(features_ND, 2)
        coordinates_N2, explained = components.coordinates_NP, tuple(components.explained_P.tolist())
    else:
        allowed = _allowed_perplexity(perplexity, count)
        dimensions = min(_TSNE_DIMENSIONS, count - 1, features_ND.shape[1])
        components = principal_components(features_ND, dimensions)
        coordinates_N2 = _tsne(components.coordinates_NP, allowed, seed, threads)
        explained = (float(components.explained_P.sum()),)
        options = {"perplexity": allowed, "seed": seed, "dimensions": dimensions}
        if allowed < perplexity:
            options["perplexity_asked_for"] = perplexity
            _log.warning("perplexity %g is lowered to %.3g: %d images allow no more", perplexity, allowed, count)
    sample_M = sample_rows(count, _LARGEST_SAMPLE)
    return Projection(
        method,
        coordinates_N2,
        explained,
        trustworthiness(features_ND[sample_M], coordinates_N2[sample_M]),
        label_agreement(features_ND, labels, sample_M),
        label_agreement(coordinates_N2, labels, sample_M),
        len(sample_M),
        options,
        shared_neighbours(features_ND[sample_M], coordinates_N2[sample_M]),
    )


def _allowed_perplexity(perplexity: float, count: int) -> float:
    """The perplexity, or the largest that so many images allow: t-SNE looks at three times as many neighbours."""
    if not (math.isfinite(perplexity) and perplexity >= 1):
        raise RequestError(f"perplexity={perplexity:g}; use 1 or more, such as 30", field="perplexity")
    return min(perplexity, (count - 1) / 3)


def _tsne(reduced_NP: Floats, perplexity: float, seed: int, threads: int | None) -> Floats:
    from openTSNE import TSNE  # on first use: it takes a second to load

    # Started at the principal components, scaled to a standard deviation of 1e-4, rather than at random: the same data
    # then give the same map.
    first_N2 = reduced_NP[:, :2] / max(float(reduced_NP[:, 0].std()), 1e-12) * 1e-4
    tsne = TSNE(perplexity=perplexity, initialization=first_N2, random_state=seed, n_jobs=threads or -1)
    coordinates_N2 = np.asarray(tsne.fit(reduced_NP), np.float64)
    return np.asarray(coordinates_N2 - coordinates_N2.mean(axis=0))


# ---- drawing


def draw_map(coordinates_N2: Floats, labels: Sequence[str], thumbnails: Sequence[bytes], *, caption: str) -> Bytes8:
    """A white square with every image at its place, the second axis upwards, a legend and the caption below.

    A dot in the label's colour replaces a thumbnail that is missing or would be mostly hidden.
    """
    colours = _label_colours(labels)
    sheet = Image.new("RGB", (_SHEET, _SHEET), (255, 255, 255))
    side = _thumbnail_side(len(coordinates_N2)) if any(thumbnails) else 6
    covered = np.zeros((_SHEET, _SHEET), bool)
    places = _places(coordinates_N2, side)
    colour_N = [colours.get(label, _GREY) for label in labels]
    points = zip(places, thumbnails, colour_N, strict=True)
    pasted_N = [_paste(sheet, covered, place, side, data, colour) for place, data, colour in points]
    pen = ImageDraw.Draw(sheet)
    for (x, y), colour, pasted in zip(places, colour_N, pasted_N, strict=True):
        if not pasted:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    parts = [np.asarray(sheet), *_legend(colours, Counter(labels)), text_image(caption, size=_SIZE, width=_SHEET)]
    return add_margin(vstack(parts, gap=12), margin=16)


def _label_colours(labels: Sequence[str]) -> dict[str, Colour]:
    """The commonest labels' colours, evenly around the circle; all other labels are drawn grey."""
    common = [label for label, _ in Counter(label for label in labels if label).most_common(_COLOURS)]
    return {label: _colour(n / len(common)) for n, label in enumerate(common)}


def _colour(hue: float) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paste(
    sheet: Image.Image, covered: np.ndarray, place: tuple[int, int], side: int, data: bytes, colour: Colour
) -> bool:
    """Draw the thumbnail, framed in its label's colour, unless too much of it is covered already."""
    x, y = place[0] - side // 2, place[1] - side // 2
    area = covered[max(y, 0) : y + side, max(x, 0) : x + side]
    if not data or area.mean() > _MOST_HIDDEN:
        return False
    with Image.open(io.BytesIO(data)) as thumbnail:
        small = thumbnail.convert("RGB").resize((side - 4, side - 4), Image.Resampling.LANCZOS)
    sheet.paste(colour, (x, y, x + side, y + side))
    sheet.paste(small, (x + 2, y + 2))
    area[:] = True
    return True


def _thumbnail_side(count: int) -> int:
    """In pixels, such that evenly spread thumbnails would about fill the sheet."""
    return int(min(72, max(20, 1.1 * _SHEET / math.sqrt(count))))


def _places(coordinates_N2: Floats, side: int) -> list[tuple[int, int]]:
    # One scale for both axes: distances would otherwise be distorted.
    low_2, high_2 = coordinates_N2.min(axis=0), coordinates_N2.max(axis=0)
    share = (_SHEET - side - 8) / max(float((high_2 - low_2).max()), 1e-12)
    middle_2 = (low_2 + high_2) / 2
    across, up = (share * (coordinates_N2 - middle_2)).T
    return [(round(_SHEET / 2 + x), round(_SHEET / 2 - y)) for x, y in zip(across.tolist(), up.tolist(), strict=True)]


def _legend(colours: dict[str, Colour], counts: Counter[str]) -> list[Bytes8]:
    entries = [(f"{label[:28]} ({counts[label]})", colour) for label, colour in colours.items()]
    unlisted = [label for label in counts if label and label not in colours]
    if unlisted:
        entries.append((f"{len(unlisted)} others ({sum(counts[label] for label in unlisted)})", _GREY))
    items = []
    for words, colour in entries:
        swatch = np.full((_SWATCH, _SWATCH, 3), colour, np.uint8)
        items.append(hstack([swatch, text_image(words, size=_SIZE, width=_COLUMN - _SWATCH - 8)], gap=8))
    columns = _SHEET // (_COLUMN + 12)
    return [hstack(items[n : n + columns], gap=12) for n in range(0, len(items), columns)]
