"""The model entries that a server makes of one archive."""

from __future__ import annotations

from pathlib import Path

from convlens.serving.manifest import read_manifest

SUFFIX = "_sweep"


def entries(archive: Path, *, name: str = "") -> dict[str, Path]:
    """Entry -> archive: ``name`` (by default the one it was built for) and, where the archive says so, the entry that
    answers what is heavy, under the name that it says. Raises ServerError for a bad archive.

    Both are one archive with workers of their own, so that sweeps that queue in one keep no prediction waiting in the
    other.
    """
    manifest = read_manifest(archive)
    quick = name or manifest.name
    sweeps_at = str((manifest.config.get("convlens") or {}).get("sweeps_at") or "")
    return {quick: archive} | ({sweeps_at: archive} if sweeps_at else {})
