"""The folder of an atlas: what it holds while it is made, and when it is done.

out/.partial/settings.json, survey.npz, records.jsonl, pictures/  while it runs: a record a channel, written last
out/pictures/LAYER/CHANNEL/                                       the channel's images
out/index.html, layers/, images/, atlas.css, atlas.js             the pages, and the images that patches come from
out/records.jsonl, atlas.json                                     every number; atlas.json comes last
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convlens.errors import RequestError
from convlens.utils.files import atomic_write, sync_file, sync_folder
from convlens.utils.record_dir import (
    PARTIAL,
    RECORDS,
    SETTINGS,
    read_records,
    record_line,
    require_usable,
    resumed_records,
    write_json,
)

__all__ = ["RECORDS", "read_records"]

RESULT, PAGE = "atlas.json", "index.html"
PICTURES, LAYERS, IMAGES = "pictures", "layers", "images"
_ASSETS = ("atlas.css", "atlas.js")
_PUBLISHED = (PICTURES, IMAGES, LAYERS, *_ASSETS, PAGE)
_SURVEY = "survey.npz"
_KIND = "an atlas"  # what errors call it
_OURS = frozenset({RESULT, RECORDS, *_PUBLISHED})

Record = dict[str, Any]


class AtlasDir:
    """``out`` for this process alone; see ``open_atlas_dir``. ``resumed`` holds the records of channels that are done.

    ``survey`` is the file in which the pass over the images keeps its state.
    """

    def __init__(self, out: Path, resumed: list[Record]) -> None:
        self.out, self.resumed = out, resumed
        self.survey = out / PARTIAL / _SURVEY
        self._journal = (out / PARTIAL / RECORDS).open("ab")

    def add(self, record: Record, folder: str, files: Mapping[str, bytes]) -> None:
        """Have a channel's files, in ``folder`` below the pictures, and then its record reach the disk."""
        place = self.out / PARTIAL / PICTURES / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            with (place / name).open("wb") as file:
                file.write(data)
                sync_file(file)
        self._journal.write(record_line(record))
        sync_file(self._journal)

    def close(self) -> None:
        self._journal.close()

    def publish(self, result: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """Complete the folder: what ``write`` writes into the folder that it is given, the records, the result last."""
        self.close()
        partial = self.out / PARTIAL
        write(partial)
        (self.out / RESULT).unlink(missing_ok=True)
        # A copy: until the end a kill loses no record. What was moved before a kill stays where it is.
        with atomic_write(self.out / RECORDS) as draft:
            shutil.copyfile(partial / RECORDS, draft)
        for name in _PUBLISHED:
            if (partial / name).exists():
                _remove(self.out / name)
                (partial / name).rename(self.out / name)
        write_json(self.out / RESULT, result)
        sync_folder(self.out)
        (partial / SETTINGS).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)


def require_atlas_dir(out: Path, *, overwrite: bool) -> None:
    """RequestError, before any work, for a folder that ``open_atlas_dir`` refuses whatever the settings are."""
    require_usable(out, kind=_KIND, result=RESULT, ours=_OURS, overwrite=overwrite)


@contextlib.contextmanager
def open_atlas_dir(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[AtlasDir]:
    """The folder of a new atlas, or of an interrupted one with these very settings, with its records so far.

    Raises RequestError while another process writes there, for a file, for a folder that holds other things, for one
    that is complete, and for one that was begun with other settings (which are named); with ``overwrite`` the last two
    are replaced. ConvLensError where the disk refuses, after which the same call resumes.
    """
    with (
        resumed_records(out, settings, kind=_KIND, result=RESULT, ours=_OURS, overwrite=overwrite) as resumed,
        contextlib.closing(AtlasDir(out, resumed)) as folder,
    ):
        yield folder


def read_atlas(out: Path) -> dict[str, Any]:
    """What ``atlas.json`` in a complete folder holds; RequestError where there is none."""
    try:
        result = json.loads((out / RESULT).read_bytes())
    except FileNotFoundError:
        running = (out / PARTIAL).is_dir()
        hint = "run the command that began it once more" if running else "make one by `convlens atlas DIR -o SITE`"
        raise RequestError(f"{out} holds no finished atlas; {hint}", field="atlas") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{out / RESULT} cannot be read ({error}); run `convlens atlas` again") from error
    if not isinstance(result, dict) or "layers" not in result:
        raise RequestError(f"{out / RESULT} is no atlas; run `convlens atlas` again", field="atlas")
    return result


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
