"""What a finished folder says of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convlens.bulk.journal import Entry


def manifest(settings: Mapping[str, Any], last: Entry, names: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """The settings, the counts, and size and hash of each file, which lies in the first of the folders that has it.

    It holds neither times nor places, so that the same pictures make the same bytes.
    """
    counts = {"rows": last.total, "dimensions": last.dimensions, "unreadable": last.next - last.total}
    paths = [next(folder / name for folder in folders if (folder / name).exists()) for name in names]
    return {**settings, **counts, "dtype": "float32", "files": [_stored(path) for path in paths]}


def _stored(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"name": path.name, "bytes": file.tell(), "sha256": digest.hexdigest()}
