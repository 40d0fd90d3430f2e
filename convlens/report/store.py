"""The page as a file."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from convlens.errors import ConvLensError
from convlens.report.page import NO_TITLES, render
from convlens.report.rows import ReportRow


def write(
    path: Path,
    *,
    rows: Sequence[ReportRow],
    title: str,
    model: str,
    descriptions: Mapping[str, tuple[str, str]],
    notes: Sequence[str] = (),
    titles: Mapping[str, str] = NO_TITLES,
    date: str = "",
) -> None:
    """Write what ``render`` makes of the same arguments: the whole page or nothing.

    An older file at ``path`` stays as it was until the new one is complete. The folder must exist. Raises ConvLensError
    when it cannot be written to, beside what ``render`` raises.
    """
    page = render(rows=rows, title=title, model=model, descriptions=descriptions, notes=notes, titles=titles, date=date)
    try:
        _replace(path, page.encode("utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConvLensError(
            f"cannot write the report {str(path)!r}: {reason}; give a file in an existing folder that may be written to"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    beside = path.parent / f".report-{secrets.token_hex(6)}.part"
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
