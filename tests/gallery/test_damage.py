"""Every kind of damage is found on opening, and the message names the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from galleries import make

from convlens.errors import GalleryError
from convlens.gallery import Gallery
from convlens.gallery.versions import version_name

FILES = ["manifest.json", "vectors.npy", "entries.jsonl", "thumbnails.bin"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "gallery", np.random.default_rng(0).standard_normal((20, 16)))
    return tmp_path / "gallery"


def file_of(folder: Path, name: str) -> Path:
    return next(folder.glob(f"v-*/{name}"))


def test_a_missing_folder_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(GalleryError, match=r"no gallery in .*nowhere; make one with `convlens gallery build`"):
        Gallery.open(tmp_path / "nowhere")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name, verify):
    file_of(folder, name).unlink()
    with pytest.raises(GalleryError, match=f"{name} .*build the gallery again"):
        Gallery.open(folder, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("keep", [0.0, 0.5, -1])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_even_without_hashing(folder, name, keep, verify):
    path = file_of(folder, name)
    data = path.read_bytes()
    path.write_bytes(data[:-1] if keep < 0 else data[: int(keep * len(data))])
    with pytest.raises(GalleryError, match=f"{name} .*build the gallery again"):
        Gallery.open(folder, verify=verify)


@pytest.mark.parametrize("bit", [0, 5, 7])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_found(folder, name, place, bit):
    path = file_of(folder, name)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(GalleryError, match=f"{name} is damaged"):
        Gallery.open(folder)


@pytest.mark.parametrize("place", range(19))
def test_a_flipped_bit_in_the_name_of_the_current_version_is_found(folder, place):
    path = folder / "CURRENT"
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(GalleryError, match=r"CURRENT is damaged|manifest\.json is missing"):
        Gallery.open(folder)


@pytest.mark.parametrize("text", ["", "v-", "VERSION", " VERSION\n", "VERSION\n\n", "../gallery/VERSION\n", "\xff\n"])
def test_a_current_file_of_any_other_form_is_refused(folder, text):
    version = next(folder.glob("v-*")).name
    (folder / "CURRENT").write_bytes(text.replace("VERSION", version).encode("latin-1"))
    with pytest.raises(GalleryError, match="CURRENT is damaged"):
        Gallery.open(folder)


def forge(folder: Path, **fields) -> None:
    """A manifest with other fields, under the name that belongs to it: not damage, but a gallery made wrongly."""
    path = file_of(folder, "manifest.json")
    data = json.dumps({**json.loads(path.read_bytes()), **fields}).encode()
    path.write_bytes(data)
    path.parent.rename(folder / version_name(data))
    (folder / "CURRENT").write_text(f"{version_name(data)}\n")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": 1}, "has format 1, this version reads 2"),
        ({"count": 19}, "instead of float32 \\(19, 16\\)"),
        ({"dimensions": 17}, "instead of float32 \\(20, 17\\)"),
        ({"feature_space": "cosine"}, "there are: unit, raw"),
        ({"files": {}}, "manifest.json is missing or damaged"),
        ({"surprise": 1}, "manifest.json is missing or damaged"),
    ],
)
def test_a_manifest_that_contradicts_the_files_is_refused(folder, fields, says):
    forge(folder, **fields)
    with pytest.raises(GalleryError, match=says):
        Gallery.open(folder)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b'{"id": "a", "label": "b", "offset": 0}',
        b'{"id": 1, "label": "b", "offset": 0, "length": 1}',
        b'{"id": "a", "label": "b", "offset": -1, "length": 1}',
        b'{"id": "a", "label": "b", "offset": 0, "length": 1000000}',
    ],
)
def test_a_line_that_is_no_entry_is_named_by_its_number(folder, line):
    path = file_of(folder, "entries.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    room = sum(map(len, lines[7:10])) - 1
    # the rest of three lines is filled up, so that the file keeps its size and only the line itself is wrong
    path.write_bytes(b"".join([*lines[:7], line.ljust(room), b"\n", *lines[10:]]))
    with pytest.raises(GalleryError, match=r"entries\.jsonl: line 8 "):
        Gallery.open(folder, verify=False)


def test_fewer_entries_than_embeddings_are_noticed(folder):
    path = file_of(folder, "entries.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-2], lines[-2].rstrip(b"\n").ljust(len(lines[-2] + lines[-1]) - 1) + b"\n"]))
    with pytest.raises(GalleryError, match="has 19 entries for 20 embeddings"):
        Gallery.open(folder, verify=False)


def test_pickled_arrays_are_never_loaded(folder):
    path = file_of(folder, "vectors.npy")
    size = path.stat().st_size
    with path.open("wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    with pytest.raises(GalleryError, match=r"vectors\.npy is no array"):
        Gallery.open(folder, verify=False)
