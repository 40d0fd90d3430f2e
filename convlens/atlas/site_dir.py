"""The folder of an atlas: what it holds while it is made, and when it is done.

out/.partial/settings.json, survey.npz, records.jsonl, pictures/  while it runs: a record a channel, written last
out/pictures/LAYER/CHANNEL/                                       the channel's images
out/index.html, layers/, images/, atlas.css, atlas.js             the pages, and the images that patches come from
out/records.jsonl, atlas.json                                     every number; atlas.json comes last
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convlens.errors import ConvLensError, RequestError
from convlens.utils.files import atomic_write, exclusive_lock, sync_file, sync_folder

RESULT, RECORDS, PAGE = "atlas.json", "records.jsonl", "index.html"
PICTURES, LAYERS, IMAGES = "pictures", "layers", "images"
_ASSETS = ("atlas.css", "atlas.js")
_PUBLISHED = (PICTURES, IMAGES, LAYERS, *_ASSETS, PAGE)
_PARTIAL, _SETTINGS, _SURVEY = ".partial", "settings.json", "survey.npz"
_OURS = frozenset({RESULT, RECORDS, *_PUBLISHED})

Record = dict[str, Any]


class AtlasDir:
    """``out`` for this process alone; see ``open_atlas_dir``. ``resumed`` holds the records of channels that are done.

    ``survey`` is the file in which the pass over the images keeps its state.
    """

    def __init__(self, out: Path, resumed: list[Record]) -> None:
        self.out, self.resumed = out, resumed
        self.survey = out / _PARTIAL / _SURVEY
        self._journal = (out / _PARTIAL / RECORDS).open("ab")

    def add(self, record: Record, folder: str, files: Mapping[str, bytes]) -> None:
        """Have a channel's files, in ``folder`` below the pictures, and then its record reach the disk."""
        place = self.out / _PARTIAL / PICTURES / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            with (place / name).open("wb") as file:
                file.write(data)
                sync_file(file)
        self._journal.write(json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n")
        sync_file(self._journal)

    def close(self) -> None:
        self._journal.close()

    def publish(self, result: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """Complete the folder: what ``write`` writes into the folder that it is given, the records, the result last."""
        self.close()
        partial = self.out / _PARTIAL
        write(partial)
        (self.out / RESULT).unlink(missing_ok=True)
        # A copy: until the end a kill loses no record. What was moved before a kill stays where it is.
        with atomic_write(self.out / RECORDS) as draft:
            shutil.copyfile(partial / RECORDS, draft)
        for name in _PUBLISHED:
            if (partial / name).exists():
                _remove(self.out / name)
                (partial / name).rename(self.out / name)
        _write_json(self.out / RESULT, result)
        sync_folder(self.out)
        (partial / _SETTINGS).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def open_atlas_dir(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[AtlasDir]:
    """The folder of a new atlas, or of an interrupted one with these very settings, with its records so far.

    Raises RequestError while another process writes there, for a file, for a folder that holds other things, for one
    that is complete, and for one that was begun with other settings (which are named); with ``overwrite`` the last two
    are replaced. ConvLensError where the disk refuses, after which the same call resumes.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        busy = RequestError(f"{out} is being written by another process; wait until it is done")
        with exclusive_lock(out, busy=busy):
            _require_ours(out)
            _resume_or_begin(out, settings, overwrite=overwrite)
            folder = AtlasDir(out, _recovered(out / _PARTIAL / RECORDS))
            with contextlib.closing(folder):
                yield folder
    except OSError as error:
        raise ConvLensError(
            f"{out} cannot be written ({error.strerror or error}); make room, or choose another folder. What was done "
            "so far stays, and the same command goes on from there"
        ) from error


def read_atlas(out: Path) -> dict[str, Any]:
    """What ``atlas.json`` in a complete folder holds; RequestError where there is none."""
    try:
        result = json.loads((out / RESULT).read_bytes())
    except FileNotFoundError:
        running = (out / _PARTIAL).is_dir()
        hint = "run the command that began it once more" if running else "make one by `convlens atlas DIR -o SITE`"
        raise RequestError(f"{out} holds no finished atlas; {hint}", field="atlas") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{out / RESULT} cannot be read ({error}); run `convlens atlas` again") from error
    if not isinstance(result, dict) or "layers" not in result:
        raise RequestError(f"{out / RESULT} is no atlas; run `convlens atlas` again", field="atlas")
    return result


def read_records(out: Path) -> list[Record]:
    """The records of a complete atlas, a channel each, layer by layer."""
    return [json.loads(line) for line in (out / RECORDS).read_bytes().splitlines()]


def _require_ours(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    began = (out / _PARTIAL).is_dir() or RESULT in names
    foreign = [name for name in names if not began or name not in _OURS]
    if foreign:
        raise RequestError(
            f"{out} holds other things than an atlas ({', '.join(foreign[:3])}); choose a new or empty folder"
        )


def _resume_or_begin(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    partial = out / _PARTIAL
    if (out / RESULT).exists() and not overwrite:
        raise RequestError(f"{out} is finished already; choose a new folder, or --overwrite to make it anew")
    previous = _read_settings(partial / _SETTINGS)
    if previous is not None:
        differences = _differences(previous, settings)
        if not differences:
            return
        if not overwrite:
            raise RequestError(
                f"{out} was begun with other settings: {differences}; repeat the command that began it, choose a new "
                "folder, or --overwrite to start again"
            )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _write_json(partial / _SETTINGS, settings)


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _differences(previous: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    # Through JSON: what was read has lists where tuples were written.
    current = json.loads(json.dumps(settings))
    names = [*current, *(name for name in previous if name not in current)]
    return "; ".join(
        f"{name} was {previous.get(name)} and is {current.get(name)}"
        for name in names
        if previous.get(name) != current.get(name)
    )


def _recovered(path: Path) -> list[Record]:
    """The whole records; the half line that a kill may leave is cut off."""
    records, end = [], 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    break
                records.append(record)
                end += len(line)
        os.truncate(path, end)
    return records


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
