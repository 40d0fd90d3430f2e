"""Reading while embedding: in order, and never more images at a time than were meant."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from extractions import mixed, photographs

from convlens.features.embedder import torch_embedder
from convlens.features.image_list import image_files
from convlens.features.loader import embed_files

WAIT = 30


def test_only_a_few_batches_are_in_memory_and_the_next_is_read_while_one_is_embedded(tmp_path: Path) -> None:
    files, batch = image_files(photographs(tmp_path / "pictures", 60)), 4
    plain = torch_embedder(mixed(), batch=batch)
    drawn, embedded, most = [0], [0], [0]
    ahead = threading.Event()

    def counted() -> Iterator[tuple[str, Path]]:
        for item in files.items():
            drawn[0] += 1
            if drawn[0] > batch:
                ahead.set()
            yield item

    def embed(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        most[0] = max(most[0], drawn[0] - embedded[0])
        embedded[0] += len(pixels)
        assert ahead.wait(WAIT)
        return plain.embed(pixels)

    watched = replace(plain, embed=embed)
    assert sum(len(each.images) for each in embed_files(counted(), watched, batch=batch, workers=2)) == 60
    assert most[0] <= 3 * batch  # one being embedded, two read ahead; not the 60 that there are
