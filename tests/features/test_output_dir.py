"""What may lie in the folder, and disks that refuse."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from extractions import ROOT, SUPPORT, contents, extraction, interrupted, photographs

from convlens.errors import ConvLensError, RequestError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("folder") / "pictures", 9)


@pytest.mark.parametrize("name", ["holiday.jpg", "features.npy", "manifest.parquet"])
def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, images: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(RequestError, match=rf"holds other things than features \({name}\)"):
        extraction(images, tmp_path, overwrite=True)
    assert contents(tmp_path) == {name: b"precious"}


def test_hidden_files_may_stay(tmp_path: Path, images: Path) -> None:
    (tmp_path / ".directory").write_bytes(b"")
    extraction(images, tmp_path)
    assert ".directory" in contents(tmp_path)


def test_a_file_in_the_way_is_an_error_that_says_so(tmp_path: Path, images: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(RequestError, match="out is a file; choose a new folder"):
        extraction(images, tmp_path / "out")


def test_a_place_where_nothing_can_be_made_is_an_error_that_says_so(images: Path) -> None:
    with pytest.raises(ConvLensError, match=r"/proc/features cannot be written \(.*\); make room, or choose another"):
        extraction(images, Path("/proc/features"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_an_error_that_says_so(tmp_path: Path, images: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(ConvLensError, match="cannot be written"):
        extraction(images, tmp_path / "out")


def test_a_second_run_is_refused_while_the_first_is_at_it(tmp_path: Path, images: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RequestError, match="being written by another process"):
        extraction(images, tmp_path)
    os.close(descriptor)
    extraction(images, tmp_path)


FULL = """
import resource, signal, sys
from pathlib import Path
from extractions import extraction
from convlens.errors import ConvLensError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    extraction(Path(sys.argv[1]), Path(sys.argv[2]))
except ConvLensError as error:
    print(error.message)
"""


@pytest.mark.parametrize("room", [300, 700, 1200])
def test_where_the_disk_is_full_it_says_so_and_goes_on_when_there_is_room(
    tmp_path: Path, images: Path, room: int
) -> None:
    command = [sys.executable, "-c", FULL, str(images), str(tmp_path / "out"), str(room)]
    environment = {**os.environ, "PYTHONPATH": f"{SUPPORT}:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert f"{tmp_path / 'out'} cannot be written (File too large); make room" in done.stdout
    assert not (tmp_path / "out" / "manifest.json").exists()
    extraction(images, tmp_path / "out")
    extraction(images, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_rows_that_have_vanished_from_the_disk_are_noticed(tmp_path: Path, images: Path) -> None:
    interrupted(images, tmp_path / "out", after=5)
    os.truncate(tmp_path / "out" / ".partial" / "features.npy", 130)
    with pytest.raises(ConvLensError, match=r"features\.npy has lost rows .*; delete .*\.partial to start again"):
        extraction(images, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / ".partial")
    assert extraction(images, tmp_path / "out").resumed == 0
