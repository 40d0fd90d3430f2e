"""Which files a folder, some paths or a list means."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from extractions import extraction, photographs

from convlens.errors import RequestError
from convlens.features.image_list import find_images, read_image_list


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return photographs(tmp_path / "pictures", 6)


def a_list(folder: Path, text: bytes) -> Path:
    (folder / "list.txt").write_bytes(text)
    return folder / "list.txt"


def test_a_list_keeps_its_order_and_its_names(tmp_path: Path, images: Path) -> None:
    path = a_list(images, b"c/002.jpg\na/000.jpg\n" + os.fsencode(images / "b" / "004.jpg") + b"\n")
    extraction(path, tmp_path / "out")
    found = pq.read_table(tmp_path / "out" / "manifest.parquet")["id"].to_pylist()
    assert found == ["c/002.jpg", "a/000.jpg", (images / "b" / "004.jpg").as_posix()]


def test_lists_of_other_systems_mean_the_same(images: Path) -> None:
    found = read_image_list(a_list(images, b"\xef\xbb\xbfa/000.jpg\r\n\r\n./b/001.jpg\r\n"))
    assert found == {"a/000.jpg": images / "a" / "000.jpg", "b/001.jpg": images / "b" / "001.jpg"}


def test_what_a_list_names_and_is_not_there_is_reported_with_the_unreadable(tmp_path: Path, images: Path) -> None:
    path = a_list(images, b"a/000.jpg\nlost/001.jpg\na\nc/002.jpg\n")
    done = extraction(path, tmp_path / "out")
    assert done.rows == 2
    assert [(failure.position, failure.id) for failure in done.unreadable] == [(1, "lost/001.jpg"), (2, "a")]
    assert "No such file" in done.unreadable[0].reason
    assert "Is a directory" in done.unreadable[1].reason


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "names no images"),
        (b"\n \n", "names no images"),
        (b"a/000.jpg\nb/001.jpg\n./a/000.jpg\n", r"names a/000\.jpg twice, the second time in line 3"),
        (b"PK\x03\x04\n\x00\x00\n", "is no list of paths: line 2 holds a zero byte"),
    ],
)
def test_lists_that_make_no_sense_are_refused(images: Path, text: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        find_images([a_list(images, text)])


def test_one_image_is_no_list(images: Path) -> None:
    assert list(find_images([images / "a" / "000.jpg"])) == ["000.jpg"]


def test_folders_and_files_share_the_folder_that_holds_them_all(images: Path) -> None:
    assert list(find_images([images / "b", images / "a" / "000.jpg"])) == ["a/000.jpg", "b/001.jpg", "b/004.jpg"]


@pytest.mark.parametrize(
    ("given", "says"),
    [(["nowhere"], "no such file or folder: nowhere"), (["."], "no images in .*; looked for .bmp"), ([], "no paths")],
)
def test_no_images_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=says):
        find_images([Path(each) for each in given])


def test_names_that_are_no_text_are_spelt_out(tmp_path: Path, images: Path) -> None:
    (images / "a" / "000.jpg").rename(images / "a" / os.fsdecode(b"\xff.jpg"))
    extraction(images, tmp_path / "out")
    found = pq.read_table(tmp_path / "out" / "manifest.parquet")["id"].to_pylist()
    assert "a/\\udcff.jpg" in found
