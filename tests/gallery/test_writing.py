"""What write() refuses, and that a kill at any moment leaves the old gallery or the new one."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from galleries import SHA, found, make
from killable import Killable
from numbered_galleries import write_forever

from convlens.errors import GalleryError
from convlens.gallery import Gallery, GalleryEntry, write
from convlens.gallery.versions import new_version

SUPPORT = Path(__file__).parents[1] / "support"


def write_two(folder: Path, **changed) -> Gallery:
    given = {
        "vectors_ND": np.eye(2, dtype=np.float32),
        "entries": [GalleryEntry("a", "x"), GalleryEntry("b", "y")],
        "weights_sha256": SHA,
        "model": "tiny",
        "embedding_layer": "head",
    }
    return write(folder, **{**given, **changed})


def test_what_was_written_is_what_is_opened(tmp_path):
    make(tmp_path / "new" / "folder", np.eye(7) * 3, feature_space="unit")
    gallery = Gallery.open(tmp_path / "new" / "folder")
    assert (len(gallery), gallery.dimensions, gallery.feature_space) == (7, 7, "unit")
    assert (gallery.weights_sha256, gallery.model, gallery.embedding_layer) == (SHA, "tiny", "head")
    assert gallery.entries[-1] == GalleryEntry("p6", "label 0", b"\xff\xd8 picture 6")
    assert [entry.id for entry in gallery.entries[1:3]] == ["p1", "p2"]


def test_names_and_labels_may_hold_anything_that_is_text(tmp_path):
    entries = [GalleryEntry('Füße/\u2028 "1"\n.jpg', "猫", b"\x00"), GalleryEntry("", "")]
    write_two(tmp_path, entries=entries)
    assert list(Gallery.open(tmp_path).entries) == entries


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"vectors_ND": np.zeros((0, 2), dtype=np.float32), "entries": []}, "at least one image"),
        ({"vectors_ND": np.ones((3, 2), dtype=np.float32)}, "2 entries and 3 embeddings"),
        ({"entries": [GalleryEntry("a", "x"), GalleryEntry("a", "y")]}, "'a' is given more than once"),
        ({"vectors_ND": np.array([[1.0, 0], [np.nan, 0]])}, "row 1 is NaN"),
        ({"vectors_ND": np.array([[1.0, 0], [0, 0]])}, "row 1 is all zero"),
        ({"vectors_ND": np.ones((2, 0))}, "must be floats"),
        ({"feature_space": "cosine"}, "there are: unit, raw"),
    ],
)
def test_a_gallery_that_makes_no_sense_is_refused_and_the_old_one_stays(tmp_path, changed, says):
    make(tmp_path, np.eye(5))
    with pytest.raises(GalleryError, match=says):
        write_two(tmp_path, **changed)
    assert len(Gallery.open(tmp_path)) == 5


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(GalleryError, match=r"other things than a gallery \(holiday.jpg\)"):
        make(tmp_path, np.eye(2))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_in_the_way_is_an_error_that_says_so(tmp_path):
    (tmp_path / "gallery").write_bytes(b"")
    with pytest.raises(GalleryError, match="cannot be written"):
        make(tmp_path / "gallery", np.eye(2))


def test_replacing_leaves_one_version(tmp_path):
    make(tmp_path, np.eye(5))
    make(tmp_path, np.eye(3))
    assert len(Gallery.open(tmp_path)) == 3
    assert sorted(path.name[:2] for path in tmp_path.iterdir()) == ["CU", "v-"]


def test_an_open_gallery_outlives_its_replacement(tmp_path):
    old = make(tmp_path, np.eye(5))
    make(tmp_path, np.eye(3))
    assert found(old, np.eye(5)[3:4], 1)[0] == [[3]]
    assert old.entries[4].thumbnail == b"\xff\xd8 picture 4"


def test_the_same_gallery_written_again_has_the_same_files(tmp_path):
    make(tmp_path / "a", np.eye(5))
    make(tmp_path / "b", np.eye(5))
    make(tmp_path / "b", np.eye(5))
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_writing_the_same_gallery_again_mends_a_damaged_one(tmp_path):
    make(tmp_path, np.eye(5))
    next(tmp_path.glob("v-*/vectors.npy")).write_bytes(b"rot")
    make(tmp_path, np.eye(5))
    assert len(Gallery.open(tmp_path)) == 5


def test_a_gallery_can_be_copied_and_read_where_nothing_may_be_written(tmp_path):
    make(tmp_path / "a", np.eye(5))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in [*(tmp_path / "b").rglob("*"), tmp_path / "b"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = _files(tmp_path / "b")
    assert found(Gallery.open(tmp_path / "b"), np.eye(5), 1)[0] == [[0], [1], [2], [3], [4]]
    assert _files(tmp_path / "b") == before


def test_a_second_writer_is_refused_while_the_first_is_at_it(tmp_path):
    with new_version(tmp_path), pytest.raises(GalleryError, match="being written by another process"):
        make(tmp_path, np.eye(2))
    make(tmp_path, np.eye(2))


def test_a_reader_always_finds_a_gallery_while_galleries_are_replaced(tmp_path):
    make(tmp_path, np.eye(4))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [make(tmp_path, np.eye(n)) for n in range(5, 45)])
        sizes = [len(Gallery.open(tmp_path))]
        while not writing.done():
            sizes.append(len(Gallery.open(tmp_path)))
        writing.result()
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5  # it did happen while reading


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- killed

WRITER = f"import sys; sys.path.insert(0, {str(SUPPORT)!r}); from numbered_galleries import Path, write_numbered\n"
# A child that dies without a word at the n-th step it takes in the file system, for every n until it survives.
EVERY_STEP = """
import os
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "fcntl.flock"}

def die_at(step):
    left = [step]
    def hook(event, _):
        if event in STEPS:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
    sys.addaudithook(hook)

from convlens.gallery import Gallery
folder, states, status, step = Path(sys.argv[1]), [], 1, 0
write_numbered(folder, 0)
while status:
    step += 1
    child = os.fork()
    if child == 0:
        die_at(step)
        write_numbered(folder, step)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    states.append(Gallery.open(folder).model)
print(states)
"""


def _whole(folder: Path) -> int:
    """The number of the gallery there, after checking that nothing of it belongs to another."""
    gallery = Gallery.open(folder)
    number = int(gallery.model.removeprefix("number "))
    assert (len(gallery), {entry.label for entry in gallery.entries}) == (1000, {str(number)})
    ((nearest,),) = gallery.query(np.zeros((1, 256), dtype=np.float32), k=1)
    assert nearest.distance == 16 * number  # √256 times the number
    assert nearest.thumbnail == b"%d" % number * 50
    return number


def _start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_writer_killed_at_any_step_leaves_the_old_gallery_or_the_new_one(tmp_path):
    writer = _start(WRITER + EVERY_STEP, tmp_path)
    output, _ = writer.communicate(timeout=120)
    assert writer.returncode == 0
    numbers = [int(state.removeprefix("number ")) for state in json.loads(output.replace("'", '"'))]
    for step, (old, new) in enumerate(zip([0, *numbers], numbers, strict=False), start=1):
        assert new in (old, step)
    assert len(numbers) > 20  # so many steps there are; the last child lived
    assert numbers[-1] == len(numbers)
    assert _whole(tmp_path) == len(numbers)
    assert sorted(path.name[:2] for path in tmp_path.iterdir()) == ["CU", "v-"]


@pytest.mark.slow
def test_a_writer_killed_at_random_moments_leaves_the_last_gallery_or_the_next(tmp_path):
    chance = random.Random(0)
    last = 0
    for _ in range(20):
        writer = Killable(write_forever, tmp_path, last + 1)
        writer.output.readline()  # one gallery is done
        began = time.monotonic()
        told = int(writer.output.readline())
        time.sleep(chance.uniform(0, 1.2) * (time.monotonic() - began))  # anywhere in the next, however slow it is
        told = max([told, *(int(line) for line in writer.kill().split())])
        last = _whole(tmp_path)
        assert last in (told, told + 1)
