"""The cache folder: entries whole or not at all, made once by however many processes, checked, and bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from convlens.errors import ConvLensError, RequestError
from convlens.utils.cache_dir import CacheDir


def writer(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "a.txt").write_text(text)

    return fill


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} is made a second time")


def text_in(folder: Path) -> str:
    return (folder / "a.txt").read_text()


def get(cache: CacheDir, key: str, fill: Callable[[Path], None]) -> str:
    return cache.get(key, facts={"model": key}, fill=fill, load=text_in)


def keys(cache: CacheDir) -> list[str]:
    return [entry.key for entry in cache.entries()]


def used_at(cache: CacheDir, key: str, seconds: float) -> None:
    os.utime(cache.folder / key, (seconds, seconds))


@pytest.fixture
def cache(tmp_path: Path) -> CacheDir:
    return CacheDir(tmp_path / "cache", 10**6)


# Fills the entry named by its second argument; the third says how.
PROCESS = """
import os, sys, time
from pathlib import Path
from convlens.utils.cache_dir import CacheDir

def fill(folder):
    folder.mkdir()
    (folder / "a.txt").write_text("half")
    if sys.argv[3] == "kill":
        os.kill(os.getpid(), 9)
    with open(sys.argv[1] + ".log", "a") as log:
        log.write("made ")
    time.sleep(0.5)
    (folder / "a.txt").write_text("whole")

print(CacheDir(Path(sys.argv[1])).get(sys.argv[2], facts={}, fill=fill, load=lambda f: (f / "a.txt").read_text()))
"""


def start(cache: CacheDir, key: str, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(cache.folder), key, how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# ---- made once, whole


def test_an_entry_is_made_once(cache: CacheDir) -> None:
    assert get(cache, "k", writer("made")) == "made"
    assert get(cache, "k", refuse) == "made"


def test_of_two_processes_one_makes_the_entry_and_the_other_waits_for_it(cache: CacheDir) -> None:
    both = [start(cache, "k", "slowly") for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["whole\n", "whole\n"]
    assert Path(f"{cache.folder}.log").read_text() == "made "


def test_an_error_while_it_is_made_leaves_nothing(cache: CacheDir) -> None:
    def fail(folder: Path) -> None:
        writer("half")(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        get(cache, "k", fail)
    assert keys(cache) == []
    assert get(cache, "k", writer("whole")) == "whole"


def test_a_kill_while_it_is_made_leaves_no_entry_and_the_next_one_clears_up(cache: CacheDir) -> None:
    assert start(cache, "k", "kill").wait(timeout=60) == -9
    assert keys(cache) == []
    assert [path.name[:3] for path in cache.folder.iterdir() if path.name != "locks"] == [".k."]
    assert get(cache, "k", writer("whole")) == "whole"
    assert sorted(path.name for path in cache.folder.iterdir()) == ["k", "locks"]


# ---- never trusted unchecked


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "content" / "a.txt").write_text("mode"),
        lambda entry: (entry / "content" / "a.txt").write_text(""),
        lambda entry: (entry / "content" / "a.txt").unlink(),
        lambda entry: (entry / "content" / "b.txt").write_text("more"),
        lambda entry: (entry / "entry.json").write_text('{"files": '),
        lambda entry: (entry / "entry.json").unlink(),
    ],
    ids=["changed", "cut off", "missing", "further file", "half a record", "no record"],
)
def test_a_damaged_entry_is_made_anew(cache: CacheDir, damage: Callable[[Path], object]) -> None:
    get(cache, "k", writer("made"))
    damage(cache.folder / "k")
    assert get(cache, "k", writer("again")) == "again"
    assert get(cache, "k", refuse) == "again"


def test_an_entry_that_is_no_longer_right_is_made_anew(cache: CacheDir) -> None:
    get(cache, "k", writer("old"))

    def current(folder: Path) -> str | None:
        return text if (text := text_in(folder)) == "new" else None

    assert cache.get("k", facts={}, fill=writer("new"), load=current) == "new"
    with pytest.raises(ConvLensError, match="is not right though it was made just now"):
        cache.get("k", facts={}, fill=writer("old"), load=lambda _: None)


# ---- bounded


def test_the_least_recently_used_entries_make_room(tmp_path: Path) -> None:
    cache = CacheDir(tmp_path / "cache", 2500)  # an entry is 1000 bytes and its record of about 150
    for n, key in enumerate(("a", "b")):
        get(cache, key, writer("x" * 1000))
        used_at(cache, key, 1000.0 + n)
    get(cache, "a", refuse)  # now b is the one not used for longest
    get(cache, "c", writer("x" * 1000))
    assert sorted(keys(cache)) == ["a", "c"]


def test_what_was_made_just_now_stays_however_large(tmp_path: Path) -> None:
    cache = CacheDir(tmp_path / "cache", 100)
    get(cache, "small", writer("x"))
    assert len(get(cache, "large", writer("x" * 1000))) == 1000
    assert keys(cache) == ["large"]


def test_an_entry_in_use_is_not_removed(tmp_path: Path) -> None:
    cache = CacheDir(tmp_path / "cache", 100)
    opened, done = threading.Event(), threading.Event()

    def hold(folder: Path) -> str:
        opened.set()
        assert done.wait(timeout=60)
        return text_in(folder)

    results: list[str] = []
    user = threading.Thread(target=lambda: results.append(cache.get("held", facts={}, fill=writer("held"), load=hold)))
    user.start()
    assert opened.wait(timeout=60)
    get(cache, "other", writer("x" * 1000))
    assert cache.clear() != []
    assert keys(cache) == ["held"]
    done.set()
    user.join(timeout=60)
    assert results == ["held"]


def test_clearing_removes_what_was_not_used_for_so_long(cache: CacheDir) -> None:
    for key in ("old", "new"):
        get(cache, key, writer(key))
    used_at(cache, "old", 1000.0)
    assert [entry.key for entry in cache.clear(unused_for_s=3600)] == ["old"]
    assert keys(cache) == ["new"]
    assert [dict(entry.facts) for entry in cache.clear()] == [{"model": "new"}]
    assert keys(cache) == []


# ---- where and how large


def test_the_environment_says_where_and_how_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("CONVLENS_CACHE_BYTES", "1000")
    assert (CacheDir().folder, CacheDir().most_bytes) == (tmp_path / "mine", 1000)
    monkeypatch.delenv("CONVLENS_CACHE")
    monkeypatch.delenv("CONVLENS_CACHE_BYTES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert (CacheDir().folder, CacheDir().most_bytes) == (tmp_path / "caches" / "convlens", 4 * 10**9)


def test_a_size_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVLENS_CACHE_BYTES", "4GB")
    with pytest.raises(RequestError, match="CONVLENS_CACHE_BYTES=4GB should be a whole number of bytes"):
        CacheDir()


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (Path("/proc/cache"), tmp_path / "file"):
        with pytest.raises(ConvLensError, match=rf"{folder} cannot be used .+ set CONVLENS_CACHE to another folder"):
            get(CacheDir(folder), "k", writer("x"))


def test_a_cache_that_was_never_used_has_no_entries(tmp_path: Path) -> None:
    assert CacheDir(tmp_path / "never").entries() == []
    assert not (tmp_path / "never").exists()
