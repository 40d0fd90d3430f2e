"""The folder that features are written to, and the order in which its files appear.

out/.partial/       everything while it grows: settings.json, journal.jsonl, the feature files, the tables
out/features*, out/*.parquet, out/thumbnails.bin     renamed into place when all pictures are done
out/manifest.json   comes last: a folder that has it is finished
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convlens.bulk.appending import flush, flush_folder
from convlens.bulk.settings import differences
from convlens.bulk.tables import ROWS, THUMBNAILS, UNREADABLE
from convlens.errors import RequestError

PARTIAL, SETTINGS, MANIFEST = ".partial", "settings.json", "manifest.json"
_NAMES = "|".join(map(re.escape, (ROWS, UNREADABLE, THUMBNAILS, MANIFEST)))
_OURS = re.compile(rf"features\.npy|features-\d{{5,}}\.safetensors|{_NAMES}")


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone; the kernel lets go of it after a kill.

    Raises RequestError while another process writes there, and for a folder that holds other things.
    """
    import fcntl  # POSIX only

    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _require_ours(out)
        yield
    except BlockingIOError as error:
        raise RequestError(f"{out} is being written by another process; wait until it is done") from error
    finally:
        os.close(descriptor)


def begun(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Path:
    """The folder to go on in: that of a run with these very settings that was cut short, or a new one.

    With ``overwrite`` what other settings began is removed; a finished result stays until the new one is complete.
    Raises RequestError for a folder that is finished, or was begun with other settings, naming what differs.
    """
    partial = out / PARTIAL
    finished = (out / MANIFEST).exists()
    if finished and not overwrite:
        discard(partial)  # a kill came between the manifest and this
        raise RequestError(f"{out} is finished already; choose a new folder, or --overwrite to make it anew")
    there = _settings_of(partial)
    if there is not None and not differences(there, settings):
        return partial
    if there is not None and not overwrite:
        found = "; ".join(differences(there, settings))
        raise RequestError(
            f"{out} was begun with other settings: {found}; repeat the command that began it, choose a new folder, or "
            "--overwrite to begin anew"
        )
    discard(partial)
    partial.mkdir()
    _write(partial / SETTINGS, settings)
    return partial


def finished(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a whole run with these very settings lies there."""
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and all(found.get(name) == value for name, value in settings.items())


def finish(out: Path, names: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """Rename the files of a complete run into place, older ones being removed; may be repeated after a kill."""
    partial = out / PARTIAL
    _write(partial / MANIFEST, manifest)
    (out / MANIFEST).unlink(missing_ok=True)
    for path in out.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in names:
            path.unlink()
    for name in names:
        if (partial / name).exists():
            (partial / name).replace(out / name)
    flush_folder(out)
    (partial / MANIFEST).replace(out / MANIFEST)
    flush_folder(out)
    discard(partial)


def discard(partial: Path) -> None:
    """Remove what was begun; without its settings, of which a kill leaves it none, nothing of it counts any more."""
    (partial / SETTINGS).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _require_ours(out: Path) -> None:
    """Hidden files, such as file managers leave, may stay; files named as ours must come with a run of ours."""
    found = sorted(path.name for path in out.iterdir())
    ran = MANIFEST in found or PARTIAL in found
    foreign = [name for name in found if not name.startswith(".") and not (ran and _OURS.fullmatch(name))]
    if foreign:
        raise RequestError(
            f"{out} holds other things than features ({', '.join(foreign[:3])}); choose a new or empty folder"
        )


def _settings_of(partial: Path) -> dict[str, Any] | None:
    """None where no run began; a kill before the settings were whole left nothing that counts."""
    try:
        found = json.loads((partial / SETTINGS).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, values: Mapping[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.next")
    with beside.open("wb") as file:
        file.write(json.dumps(values, indent=1).encode("ascii") + b"\n")
        flush(file)
    beside.replace(path)
