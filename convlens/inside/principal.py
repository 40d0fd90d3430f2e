"""Principal components of more vectors than memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convlens.types import Floats

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
