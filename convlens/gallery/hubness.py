"""Hubs: pictures that are near to too many others to mean anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convlens.gallery.nearest import nearest_others, sampled
from convlens.types import Floats

K, MOST = 5, 5000


@dataclass(frozen=True)
class Hubness:
    """Of ``measured`` pictures, how unevenly they are each other's ``k`` nearest (Radovanović et al. 2010, JMLR 11).

    ``skewness`` of how often each is among the k nearest of another: about 0 where there are no hubs, above 1 where
    there are. ``largest`` is the count of the worst hub, ``row`` its place in the gallery.
    """

    k: int
    measured: int
    skewness: float
    largest: int
    row: int


def hubness(features_ND: Floats) -> Hubness | None:
    """Measured exactly on at most 5,000 of the features; None for fewer than 3."""
    rows_M = sampled(len(features_ND), MOST)
    if len(rows_M) < 3:
        return None
    some_MD = np.asarray(features_ND[rows_M])
    k = min(K, len(rows_M) - 1)
    near_MK = nearest_others(some_MD, np.arange(len(rows_M)), k=k)
    count_M = np.bincount(near_MK.ravel(), minlength=len(rows_M)).astype(np.float64)
    spread = float(count_M.std())
    skewness = float(((count_M - count_M.mean()) ** 3).mean() / spread**3) if spread else 0.0
    worst = int(count_M.argmax())
    return Hubness(k, len(rows_M), skewness, int(count_M[worst]), int(rows_M[worst]))
