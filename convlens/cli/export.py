"""``convlens export``: the same as ``python -m export``, which knows its own options."""

from __future__ import annotations

import sys

import typer

from export.__main__ import main


def export(context: typer.Context) -> None:
    """Write ONNX graphs that agreed with torch before they got their name."""
    sys.exit(main(context.args))
