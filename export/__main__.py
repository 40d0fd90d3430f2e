"""``python -m export KIND --model NAME -o FILE.onnx`` writes a graph; ``table`` compares all families with torch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from convlens.errors import ConvLensError
from convlens.models import DEFAULT, load
from convlens.runtime.contract import KINDS
from export.options import OPSET
from export.table import FAMILIES, Row, markdown, rows
from export.write import export


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all went well; 2, with one line on standard error, where it did not; 1 for a table with failures."""
    given = _parser().parse_args(arguments)
    try:
        return _table(given) if given.command == "table" else _export(given)
    except ConvLensError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description="ONNX graphs that prove themselves.")
    commands = parser.add_subparsers(dest="command", required=True)
    for kind in KINDS:
        _add_kind(commands.add_parser(kind, help=f"write a graph of {kind}"), kind)
    table = commands.add_parser("table", help="export all families as all kinds and tell how far they are from torch")
    table.add_argument("--models", nargs="+", default=FAMILIES, metavar="NAME")
    table.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    table.add_argument("-o", "--output", type=Path, help="also write the rows as JSON")
    return parser


def _add_kind(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("--model", default=DEFAULT, help="as for convlens, e.g. torchvision:resnet50")
    parser.add_argument("-o", "--output", type=Path, required=True, help="FILE.onnx")
    parser.add_argument("--opset", type=int, default=OPSET)
    parser.add_argument("--input-size", type=int, help="side of the pictures in pixels, instead of the model's")
    parser.add_argument("--half", action="store_true", help="float16 weights")
    parser.add_argument("--preprocessing", action="store_true", help="begin at uint8 RGB pictures")
    parser.add_argument("--tolerance", type=float, help="largest relative difference from torch that may pass")
    parser.add_argument("--batch", type=int, default=8, help="windows of a turn, or the size with --static-batch")
    if kind == "features":
        parser.add_argument("--layers", nargs="+", required=True, metavar="LAYER")
    if kind == "occlusion":
        parser.add_argument("--window", type=int, default=32)
        parser.add_argument("--stride", type=int, default=16)
    else:
        parser.add_argument("--static-batch", action="store_true", help="bind the graph to --batch pictures")


def _export(given: argparse.Namespace) -> int:
    report = export(
        load(given.model, device="cpu"),
        given.command,
        given.output,
        layers=getattr(given, "layers", ()),
        window=getattr(given, "window", 32),
        stride=getattr(given, "stride", 16),
        batch=given.batch,
        opset=given.opset,
        dynamic_batch=not getattr(given, "static_batch", False),
        input_size=given.input_size,
        half=given.half,
        preprocessing=given.preprocessing,
        tolerance=given.tolerance,
    )
    worst = report.worst
    sys.stdout.write(
        f"{report.path}: agrees with torch within {worst.relative:.1e} ({worst.output}), {report.seconds:.0f} s\n"
    )
    return 0


def _table(given: argparse.Namespace) -> int:
    found = rows(given.models, given.kinds, on_row=_progress)
    if given.output is not None:
        given.output.write_text(json.dumps([dataclasses.asdict(row) for row in found], indent=1) + "\n")
    sys.stdout.write(f"\n{markdown(found)}\n")
    return int(any(row.worst is None for row in found))


def _progress(row: Row) -> None:
    said = f"{row.worst:.1e} in {row.seconds:.0f} s" if row.worst is not None else row.error
    sys.stdout.write(f"{row.model} {row.kind}: {said}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
