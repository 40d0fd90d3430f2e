"""``convlens export``. In a file of its own because the exporter, which defines the options, loads onnx."""

from __future__ import annotations

import sys

import typer

from export.__main__ import main


def export(context: typer.Context) -> None:
    """Export ONNX graphs, each compared with torch before it is written."""
    sys.exit(main(context.args))
