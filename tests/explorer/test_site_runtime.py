"""onnxruntime-web in the cache: kept only if it is the expected archive, found only if it is whole."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
from explorer_sites import browser_runtime

from convlens.errors import ConvLensError
from convlens.explorer.browser_runtime import RUNTIME

# By sha256, taken with sha256sum from the unpacked archive of npm.
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
# An npm whose registry gives another archive.
OTHER_ARCHIVE = """
import pathlib, sys
(folder,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--pack-destination=")]
pathlib.Path(folder, "onnxruntime-web-1.30.0.tgz").write_bytes(b"other bytes")
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache: Path) -> list[Path]:
    """All files but locks."""
    return [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"]


def test_an_archive_of_another_hash_is_refused_and_nothing_is_kept(cache: Path) -> None:
    with pytest.raises(ConvLensError, match="nothing was kept") as raised:
        RUNTIME.fetch([sys.executable, "-c", OTHER_ARCHIVE])
    assert "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF" in raised.value.message
    assert kept(cache) == []


@pytest.mark.parametrize("script", ["import sys; sys.exit('no such registry')", "raise SystemExit(0)"])
def test_an_npm_that_gives_nothing_is_an_error(cache: Path, script: str) -> None:
    with pytest.raises(ConvLensError, match="npm could not fetch"):
        RUNTIME.fetch([sys.executable, "-c", script])
    assert kept(cache) == []


def test_a_runtime_that_is_not_there_is_not_fetched_but_named_with_its_command(cache: Path) -> None:
    with pytest.raises(ConvLensError) as raised:
        RUNTIME.find()
    assert RUNTIME.command in raised.value.message
    assert str(cache) in raised.value.message


def test_a_runtime_that_is_there_is_found_and_not_fetched_again(cache: Path) -> None:
    shutil.copytree(browser_runtime().parent, cache / browser_runtime().parent.name)
    folder = RUNTIME.fetch(["no-such-npm"])
    assert folder == RUNTIME.find()
    assert {file.name for file in folder.iterdir()} == {*FILES, "LICENSE.txt"}


def test_a_damaged_runtime_is_not_used(cache: Path) -> None:
    shutil.copytree(browser_runtime().parent, cache / browser_runtime().parent.name)
    (RUNTIME.find() / "ort.wasm.min.mjs").write_text("damaged")
    with pytest.raises(ConvLensError, match="fetch it once"):
        RUNTIME.find()


def test_the_files_are_those_of_the_package() -> None:
    found = {name: hashlib.sha256((browser_runtime() / name).read_bytes()).hexdigest() for name in FILES}
    assert found == FILES
