"""A finished extraction as the parts of a gallery, a chunk at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convlens.bulk.ahead import grouped
from convlens.bulk.tables import THUMBNAILS, read_rows
from convlens.gallery.entries import GalleryEntry
from convlens.gallery.features import FeatureSpace, as_features, flaws
from convlens.gallery.writing import Part

_CHUNK = 4096
FEATURES = "features.npy"


@dataclass(frozen=True)
class Extracted:
    """What an extraction holds that a gallery can use; ``flawed`` are (id, reason) of the rows that it cannot."""

    folder: Path
    space: FeatureSpace
    count: int
    dimensions: int
    flawed: tuple[tuple[str, str], ...]

    def parts(self, label_of: Callable[[str], str]) -> Iterator[Part]:
        """Usable rows in their order."""
        with (self.folder / THUMBNAILS).open("rb") if self._small else contextlib.nullcontext() as thumbnails:
            for names, vectors_BD, lengths in _chunks(self.folder, self._small):
                bad = flaws(vectors_BD, self.space)
                entries = [
                    GalleryEntry(name, label_of(name), thumbnails.read(length) if thumbnails else b"")
                    for name, length in zip(names, lengths, strict=True)
                ]
                kept = [n for n in range(len(names)) if n not in bad]
                if kept:
                    yield Part(as_features(vectors_BD[kept], self.space), [entries[n] for n in kept])

    @property
    def _small(self) -> bool:
        return (self.folder / THUMBNAILS).is_file()


def read_extracted(folder: Path, space: FeatureSpace) -> Extracted:
    """Looks through all rows once, for those that the space has no place for."""
    flawed: list[tuple[str, str]] = []
    rows, dimensions = 0, 0
    for names, vectors_BD, _ in _chunks(folder, small=False):
        rows, dimensions = rows + len(names), vectors_BD.shape[1]
        flawed += [(names[n], f"its embedding is {flaw}") for n, flaw in flaws(vectors_BD, space).items()]
    return Extracted(folder, space, rows - len(flawed), dimensions, tuple(flawed))


def _chunks(folder: Path, small: bool) -> Iterator[tuple[list[str], NDArray[np.float32], list[int]]]:
    vectors_ND = np.load(folder / FEATURES, mmap_mode="r", allow_pickle=False)
    columns = ("id", "thumbnail") if small else ("id",)
    first = 0
    for some in grouped(read_rows(folder, *columns), _CHUNK):
        names = [str(row[0]) for row in some]
        lengths = [int(row[1]) for row in some] if small else [0] * len(some)
        yield names, np.array(vectors_ND[first : first + len(some)]), lengths
        first += len(some)
