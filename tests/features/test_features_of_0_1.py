"""Folders of features that version 0.1.0 finished or began."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import written
from PIL import Image
from safetensors.numpy import load_file

from convlens.errors import RequestError
from convlens.features.embedder import torch_embedder
from convlens.features.extract import Extraction, extract
from convlens.features.image_list import image_files
from convlens.features.tables import read_failures, read_rows

FORMATS = ("npy", "safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written.copied(tmp_path)


def go_on(folder: Path, out: Path, format: str, **options: object) -> Extraction:
    """As version 0.1.0 was called."""
    embedder = torch_embedder(written.network(folder), batch=2)
    side = 8 if format == "npy" else 0
    given = {"format": format, "batch": 2, "shard_rows": 3, "thumbnail_side": side, **options}
    return extract(image_files(folder / "images"), out, embedder, **given)


def features(folder: Path) -> np.ndarray:
    if (folder / "features.npy").exists():
        return np.load(folder / "features.npy")
    return np.concatenate([load_file(path)["features"] for path in sorted(folder.glob("*.safetensors"))])


def assert_tables(folder: Path, format: str) -> None:
    expected = written.expected(f"features-{format}")
    rows = [list(row) for row in read_rows(folder, *expected["columns"])]
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected["rows"]]
    np.testing.assert_allclose([row[-1] for row in rows], [row[-1] for row in expected["rows"]], rtol=1e-5)
    # Only ids: the reasons are words for people, which later versions may choose better.
    assert [id for id, _ in read_failures(folder)] == [id for id, _ in expected["unreadable"]]


@pytest.mark.parametrize("format", FORMATS)
def test_a_finished_folder_is_read_and_taken_for_finished(folder: Path, format: str) -> None:
    out = folder / f"features-{format}"
    assert_tables(out, format)
    assert [list(pair) for pair in read_failures(out)] == written.expected(f"features-{format}")["unreadable"]
    with pytest.raises(RequestError, match="is finished already"):
        go_on(folder, out, format)
    written.as_if_with_these_libraries(out / "manifest.json")
    reused = go_on(folder, out, format, reuse=True)
    assert (reused.rows, reused.dimensions, reused.resumed) == (7, 8, 8)
    assert [failure.id for failure in reused.unreadable] == ["b/broken.png"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_interrupted_folder_goes_on_to_the_same_features(folder: Path, format: str) -> None:
    whole, out = folder / f"features-{format}", folder / f"features-{format}-interrupted"
    written.as_if_with_these_libraries(out / ".partial" / "settings.json")
    done = go_on(folder, out, format)
    assert (done.rows, done.resumed) == (7, 4)
    np.testing.assert_array_equal(features(out)[:4], features(whole)[:4])
    np.testing.assert_allclose(features(out), features(whole), rtol=1e-5)  # other machines add in another order
    assert_tables(out, format)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_thumbnails_go_on_behind_those_that_were_there(folder: Path) -> None:
    whole, out = folder / "features-npy", folder / "features-npy-interrupted"
    begun = (out / ".partial" / "thumbnails.bin").read_bytes()
    written.as_if_with_these_libraries(out / ".partial" / "settings.json")
    go_on(folder, out, "npy")
    data = (out / "thumbnails.bin").read_bytes()
    assert data.startswith(begun) and (whole / "thumbnails.bin").read_bytes().startswith(begun)
    lengths = [length for (length,) in read_rows(out, "thumbnail")]
    assert sum(lengths) == len(data)
    assert Image.open(io.BytesIO(data[sum(lengths[:-1]) :])).size == (8, 8)
