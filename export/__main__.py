"""``python -m export KIND --model NAME -o FILE.onnx`` writes a graph, ``bundle`` a folder of them.

``table`` compares all families with torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from convlens.errors import ConvLensError
from convlens.models import DEFAULT, load
from convlens.runtime.graph_contract import GRADIENTS, KINDS
from export.bundle import ALONE, bundle
from export.compatibility import FAMILIES, Row, markdown, rows
from export.exporter import export
from export.options import OPSET, STRATEGIES


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all went well; 2, with one line on standard error, where it did not; 1 for a table with failures."""
    given = _parser().parse_args(arguments)
    try:
        return {"table": _table, "bundle": _bundle}.get(given.command, _export)(given)
    except ConvLensError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description="ONNX graphs that prove themselves.")
    commands = parser.add_subparsers(dest="command", required=True)
    for kind in KINDS:
        _add_kind(commands.add_parser(kind, help=f"write a graph of {kind}"), kind)
    _add_bundle(commands.add_parser("bundle", help="write all graphs of an archive, and model.json, into a folder"))
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
    if kind not in GRADIENTS:
        parser.add_argument("--half", action="store_true", help="float16 weights")
    parser.add_argument("--preprocessing", action="store_true", help="begin at uint8 RGB pictures")
    parser.add_argument("--tolerance", type=float, help="largest relative difference from torch that may pass")
    parser.add_argument("--batch", type=int, default=8, help="windows of a turn, or the size with --static-batch")
    if kind == "features":
        parser.add_argument("--layers", nargs="+", required=True, metavar="LAYER")
    if kind == "occlusion":
        parser.add_argument("--window", type=int, default=32)
        parser.add_argument("--stride", type=int, default=16)
        parser.add_argument("--strategy", choices=STRATEGIES, default="full", help="incremental: see docs/occlusion.md")
    else:
        parser.add_argument("--static-batch", action="store_true", help="bind the graph to --batch pictures")


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT, help="as for convlens, e.g. torchvision:resnet50")
    parser.add_argument("-o", "--output", type=Path, required=True, help="FOLDER")
    parser.add_argument("--kinds", nargs="+", default=ALONE, choices=[kind for kind in KINDS if kind != "features"])
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--strategy", choices=STRATEGIES, default="full", help="incremental: see docs/occlusion.md")


def _bundle(given: argparse.Namespace) -> int:
    made = bundle(
        load(given.model, device="cpu"),
        given.output,
        kinds=given.kinds,
        window=given.window,
        stride=given.stride,
        strategy=given.strategy,
    )
    for report in made.reports:
        worst = report.worst
        sys.stdout.write(f"{report.path}: agrees with torch within {worst.relative:.1e} ({worst.output})\n")
    for kind, reason in made.skipped:
        sys.stdout.write(f"no {kind}: {reason}\n")
    return 0


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
        half=getattr(given, "half", False),
        preprocessing=given.preprocessing,
        tolerance=given.tolerance,
        strategy=getattr(given, "strategy", "full"),
    )
    worst = report.worst
    sys.stdout.write(
        f"{report.path}: agrees with torch within {worst.relative:.1e} ({worst.output}), {report.seconds:.0f} s\n"
    )
    if given.command == "occlusion" and report.note:
        sys.stdout.write(f"{report.note}\n")
    return 0


def _table(given: argparse.Namespace) -> int:
    found = rows(given.models, given.kinds, on_row=_progress)
    if given.output is not None:
        given.output.write_text(json.dumps([dataclasses.asdict(row) for row in found], indent=1) + "\n")
    sys.stdout.write(f"\n{markdown(found)}\n")
    return int(any(row.worst is None and not row.refused for row in found))


def _progress(row: Row) -> None:
    said = f"{row.worst:.1e} in {row.seconds:.0f} s" if row.worst is not None else row.error
    sys.stdout.write(f"{row.model} {row.kind}: {said}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
