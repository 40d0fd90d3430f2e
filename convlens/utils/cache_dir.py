"""The folder where ConvLens keeps what it made once for this machine; its entries are whole, checked and bounded.

CACHE/KEY/entry.json     what the entry is, and the sha256 of each of its files
CACHE/KEY/content/       the files
CACHE/locks/KEY          held while the entry is made, opened or removed; empty, and stays
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from convlens.errors import ConvLensError, RequestError
from convlens.utils.files import exclusive_lock, replace_folder, sha256_of_file

T = TypeVar("T")
FOLDER, MOST_BYTES = "CONVLENS_CACHE", "CONVLENS_CACHE_BYTES"  # environment variables
_DEFAULT_BYTES = 4 * 10**9
_RECORD, _CONTENT, _LOCKS = "entry.json", "content", "locks"


@dataclass(frozen=True)
class CacheEntry:
    """``facts`` say what it holds, empty for a damaged one; ``last_used`` is in seconds since the epoch."""

    key: str
    facts: Mapping[str, str]
    bytes: int
    last_used: float


def default_folder() -> Path:
    """``CONVLENS_CACHE``, else ConvLens's folder among the user's caches."""
    import platformdirs  # here: most processes keep nothing

    return Path(os.environ.get(FOLDER) or platformdirs.user_cache_dir("convlens", appauthor=False))


def default_bytes() -> int:
    """``CONVLENS_CACHE_BYTES``, else 4 GB. RequestError for anything but a whole number."""
    text = os.environ.get(MOST_BYTES, "") or str(_DEFAULT_BYTES)
    if not text.isdecimal():
        raise RequestError(f"{MOST_BYTES}={text} should be a whole number of bytes, such as {_DEFAULT_BYTES}")
    return int(text)


@dataclass(frozen=True)
class CacheDir:
    """Entries by their keys, together at most ``most_bytes`` large; safe to use from several processes and threads."""

    folder: Path = field(default_factory=default_folder)
    most_bytes: int = field(default_factory=default_bytes)

    def get(
        self, key: str, *, facts: Mapping[str, str], fill: Callable[[Path], None], load: Callable[[Path], T | None]
    ) -> T:
        """``load`` of the entry's files, after ``fill`` has written them where they are missing or damaged.

        Where ``load`` gives None, the files are no longer right and are made anew. Both get the folder of the files,
        and no other process makes, opens or removes this entry meanwhile. Then the least recently used others go, until
        the rest is small enough. Raises ConvLensError where the folder cannot be written or ``load`` gives None again.
        """
        entry = self.folder / key
        try:
            with self._locked(key):
                result = load(entry / _CONTENT) if _is_whole(entry) else None
                if result is None:
                    self._fill(entry, facts, fill)
                    result = load(entry / _CONTENT)
                    self._shrink()
                os.utime(entry)
        except OSError as error:
            raise ConvLensError(
                f"the cache folder {self.folder} cannot be used ({error.strerror or error}); make room, or set "
                f"{FOLDER} to another folder"
            ) from error
        if result is None:
            raise ConvLensError(f"{entry} is not right though it was made just now")
        return result

    def entries(self) -> list[CacheEntry]:
        """All entries, the least recently used first."""
        found = [entry for folder in self._folders() if (entry := _read_entry(folder)) is not None]
        return sorted(found, key=lambda entry: entry.last_used)

    def clear(self, *, unused_for_s: float = 0.0) -> list[CacheEntry]:
        """Remove the entries that were not used for so long, but none that is in use; gives those that are gone."""
        before = time.time() - unused_for_s
        return [entry for entry in self.entries() if entry.last_used <= before and self._remove(entry.key)]

    def _fill(self, entry: Path, facts: Mapping[str, str], fill: Callable[[Path], None]) -> None:
        for draft in self.folder.glob(f".{entry.name}.*"):  # of a process that was killed
            shutil.rmtree(draft, ignore_errors=True)
        with replace_folder(entry) as draft:
            fill(draft / _CONTENT)
            record = {"facts": dict(facts), "files": _hashes(draft / _CONTENT)}
            (draft / _RECORD).write_text(json.dumps(record, indent=1))

    def _shrink(self) -> None:
        entries = self.entries()
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total > self.most_bytes and self._remove(entry.key):
                total -= entry.bytes

    def _remove(self, key: str) -> bool:
        """False where it is in use, by this process or another."""
        try:
            with self._locked(key, wait=False):
                (self.folder / key / _RECORD).unlink(missing_ok=True)  # first: without it the rest does not count
                shutil.rmtree(self.folder / key, ignore_errors=True)
        except _InUseError:
            return False
        return True

    def _folders(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):  # nothing was ever kept
            yield from (path for path in self.folder.iterdir() if path.is_dir() and path.name[0] != ".")

    @contextlib.contextmanager
    def _locked(self, key: str, *, wait: bool = True) -> Iterator[None]:
        locks = self.folder / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(locks / key, busy=None if wait else _InUseError(f"{key} is in use")):
            yield


class _InUseError(ConvLensError):
    pass


def _is_whole(entry: Path) -> bool:
    try:
        files: object = json.loads((entry / _RECORD).read_bytes())["files"]
        return files == _hashes(entry / _CONTENT)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _hashes(content: Path) -> dict[str, str]:
    files = sorted(path for path in content.rglob("*") if path.is_file())
    return {path.relative_to(content).as_posix(): sha256_of_file(path) for path in files}


def _read_entry(folder: Path) -> CacheEntry | None:
    """None for a folder that is no entry, and for one that another process is removing."""
    try:
        used, size = folder.stat().st_mtime, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except FileNotFoundError:
        return None
    try:
        facts = {str(name): str(value) for name, value in json.loads((folder / _RECORD).read_bytes())["facts"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        facts = {}
    return CacheEntry(folder.name, facts, size, used) if folder.name != _LOCKS else None
