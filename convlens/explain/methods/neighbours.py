"""Nearest neighbours: the gallery pictures that look alike to the network."""

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
    shows="which pictures of the gallery lie nearest in the network's last features: what it takes for alike.",
    does_not_show="why; and it can only choose from the gallery it was given.",
)
def neighbours(forward: Forward, target_N: Ints, *, k: Annotated[int, Interval(ge=1, le=1000)] = 5) -> Neighbourhood:
    """The ``k`` gallery pictures nearest to each row by exact L2 distance between embeddings, nearest first.

    Distances are Euclidean, not squared, in the gallery's feature space (unit-normalised by default). ``target_N``
    plays no part. Raises GalleryError without a gallery, for a gallery of other weights, and for ``k`` above its
    size.
    """
    started = time.perf_counter()
    if forward.gallery is None:
        raise GalleryError(
            "no gallery to look for neighbours in; build one with `convlens gallery build DIR`", field="method"
        )
    forward.gallery.require_weights(forward.spec.weights_sha256)
    found_NM = forward.gallery.query(forward.embedding_ND, k=k)
    return Neighbourhood(found_NM, "neighbours", {"k": k}, forward.meta("logit", started=started))
