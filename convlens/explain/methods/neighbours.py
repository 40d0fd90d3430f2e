"""Nearest neighbours: the gallery images whose embeddings are nearest."""

from __future__ import annotations

import time
from typing import Annotated

from annotated_types import Interval

from convlens.errors import GalleryError
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.types import Ints, Neighbourhood


@explainer(
    "neighbours",
    title="Nearest neighbours",
    needs="embedding",
    drawing="thumbnails",
    shows="the gallery's nearest images in the embedding space, the network's last features.",
    does_not_show="why they are near, nor anything that the gallery does not hold.",
)
def neighbours(forward: Forward, target_N: Ints, *, k: Annotated[int, Interval(ge=1, le=1000)] = 5) -> Neighbourhood:
    """The ``k`` gallery images nearest to each row by exact L2 distance between embeddings, nearest first.

    Distances are Euclidean, not squared, in the gallery's feature space (unit-normalised by default). ``target_N``
    is ignored. Raises GalleryError without a gallery, for a gallery of other weights, and for ``k`` above its
    size.
    """
    started = time.perf_counter()
    if forward.gallery is None:
        raise GalleryError(
            "no gallery to look for neighbours in; build one with `convlens gallery build DIR`", field="method"
        )
    forward.gallery.require_weights(forward.spec.weights_sha256)
    neighbours_NM = forward.gallery.query(forward.embedding_ND, k=k)
    return Neighbourhood(neighbours_NM, "neighbours", {"k": k}, forward.meta("logit", started=started))
