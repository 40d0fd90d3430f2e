"""How well neighbours survive: on a map, and between pictures of one label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convlens.gallery.nearest import nearest_others
from convlens.types import Floats, Ints

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
