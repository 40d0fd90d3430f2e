"""What the caller hands in, one value a picture."""

from __future__ import annotations

from dataclasses import dataclass

from convlens.types import Reply


@dataclass(frozen=True)
class ReportRow:
    """One picture and everything said about it.

    ``name`` may be any text. ``picture_png_or_jpeg`` is the encoded picture after resize and crop, as the model saw
    it; empty where none was kept.
    """

    name: str
    picture_png_or_jpeg: bytes
    reply: Reply
