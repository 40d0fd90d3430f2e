"""Features laid out in two dimensions, and how far the map may be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from convlens.errors import RequestError
from convlens.gallery.nearest import sampled
from convlens.inside.principal import principal_components
from convlens.inside.trust import label_agreement, trustworthiness
from convlens.types import Floats

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
    judged_N = sampled(count, MOST_JUDGED)
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
