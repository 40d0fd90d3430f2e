"""Whole files and folders or none, and a lock that ends with its process."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from convlens.errors import JobError
from convlens.utils.files import atomic_write, exclusive_lock, replace_folder, sha256_of_file

BUSY = JobError("somebody is at it")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- files


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")
    with atomic_write(path) as draft:
        assert draft.parent == tmp_path
        assert draft.suffix == ".mp4"  # encoders choose the container by it
        draft.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["film.mp4"]


def test_an_error_while_writing_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as draft:
        draft.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_what_a_kill_left_is_taken_over_by_the_next_write(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from convlens.utils.files import atomic_write\n"
    code += "with atomic_write(Path(sys.argv[1])) as draft: draft.write_bytes(b'half'); os._exit(9)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=False, timeout=60)
    assert names(tmp_path) == [".part.a"]
    with atomic_write(tmp_path / "a") as draft:
        draft.write_bytes(b"whole")
    assert names(tmp_path) == ["a"]


def test_processes_that_write_one_shared_file_do_not_write_one_draft(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a", shared=True) as draft:
        assert str(os.getpid()) in draft.name
        draft.write_bytes(b"mine")
    assert names(tmp_path) == ["a"]


def test_a_draft_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


# ---- folders


@pytest.mark.parametrize("old", [True, False])
def test_a_folder_takes_its_place_at_the_end(tmp_path: Path, old: bool) -> None:
    folder = tmp_path / "deep" / "out"
    if old:
        folder.mkdir(parents=True)
        (folder / "old.txt").touch()
    with replace_folder(folder) as draft:
        (draft / "new.txt").touch()
        assert folder.exists() == old
    assert names(folder) == ["new.txt"]
    assert names(folder.parent) == ["out"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_an_error_leaves_the_old_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.txt").touch()
    with pytest.raises(ZeroDivisionError), replace_folder(folder) as draft:
        (draft / "new.txt").touch()
        raise ZeroDivisionError
    assert names(folder) == ["old.txt"]
    assert names(tmp_path) == ["out"]


# ---- locks

HOLD = """
import sys
from pathlib import Path
from convlens.errors import JobError
from convlens.utils.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), busy=JobError("busy")):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=["a file", "a folder"])
def lockable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "place"
    if request.param == "a folder":
        path.mkdir()
    return path


def test_what_another_process_holds_is_refused_at_once_until_that_is_killed(lockable: Path) -> None:
    with held_elsewhere(lockable) as process:
        with pytest.raises(JobError) as caught, exclusive_lock(lockable, busy=BUSY):
            pass
        assert caught.value is BUSY
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        with exclusive_lock(lockable, busy=BUSY):
            pass


def test_the_lock_ends_with_the_block_and_after_an_error_in_it(lockable: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), exclusive_lock(lockable, busy=BUSY):
            raise ZeroDivisionError


def test_a_second_lock_in_the_same_process_is_refused_too(lockable: Path) -> None:
    with (
        exclusive_lock(lockable, busy=BUSY),
        pytest.raises(JobError, match="at it"),
        exclusive_lock(lockable, busy=BUSY),
    ):
        pass


def test_a_locked_folder_holds_no_file_of_the_lock(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path, busy=BUSY):
        assert names(tmp_path) == []


def test_a_program_started_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path, busy=BUSY):
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with exclusive_lock(tmp_path, busy=BUSY):
            assert sleeper.poll() is None
    finally:
        sleeper.communicate(timeout=30)
