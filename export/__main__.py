"""``convlens export``, or ``python -m export``: graphs, a folder of them, or a table of how well families agree."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from convlens.errors import ConvLensError
from convlens.models import DEFAULT, load
from convlens.runtime.graph_contract import BACKWARD, CAM, KINDS
from convlens.types import Step
from convlens.utils.files import atomic_write, require_writable, require_writable_file
from export.bundle import ALONE, bundle
from export.compatibility import FAMILIES, Row, compare_families, markdown
from export.exporter import ExportReport, OnStep, export
from export.options import OPSET, STRATEGIES

# Shows the steps of an export while its context is open; its argument is what is under way before the first step.
ShowSteps = Callable[[str], AbstractContextManager[OnStep]]


@contextmanager
def print_steps(_: str) -> Iterator[OnStep]:
    """A plain line on standard error for each step: for pipes and logs, and wherever there is no ``convlens``."""

    def show(step: Step) -> None:
        sys.stderr.write(f"{step.stage}\n")
        sys.stderr.flush()

    yield show


def main(arguments: Sequence[str] | None = None, *, show_steps: ShowSteps = print_steps) -> int:
    """Run a command. Returns 0 on success, 2 after an error (one line on standard error), 1 for a table with failures.

    Results go to standard output, after the context of ``show_steps`` has closed.
    """
    options = _parser().parse_args(arguments)
    try:
        _require_output(options)
        if options.command == "table":
            return _table(options)
        return (_bundle if options.command == "bundle" else _export)(options, show_steps)
    except ConvLensError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2


def _require_output(options: argparse.Namespace) -> None:
    """RequestError, before a model is loaded, for an output that cannot be written."""
    if options.command == "bundle":
        require_writable(options.output)
    elif options.output is not None:
        require_writable_file(options.output)


class _AddUp(argparse.Action):
    """The values of an option that is repeated, all of them; the first ones take the default's place."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        earlier = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if earlier is self.default else earlier), *values])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convlens export",
        description="Export ONNX graphs, each compared with torch before it is written.",
        epilog="`python -m export` is the same command.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for kind in KINDS:
        _add_kind(commands.add_parser(kind, help=f"write a graph of {kind}"), kind)
    _add_bundle(commands.add_parser("bundle", help="write all graphs of an archive, and model.json, into a folder"))
    table = commands.add_parser("table", help="export model families as all kinds and print how well they agree")
    table.add_argument(
        "--models", nargs="+", action=_AddUp, default=FAMILIES, metavar="NAME", help="models (default: twenty families)"
    )
    table.add_argument(
        "--kinds", nargs="+", action=_AddUp, default=KINDS, choices=KINDS, help="kinds of graphs (default: all)"
    )
    table.add_argument("-o", "--output", type=Path, help="also write the rows as JSON")
    return parser


def _add_kind(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("--model", default=DEFAULT, help="model name, e.g. torchvision:resnet50 (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="graph to write")
    parser.add_argument("--opset", type=int, default=OPSET, help="ONNX opset (default: %(default)s)")
    parser.add_argument(
        "--input-size", type=_sides, metavar="SIDE|HxW", help="size of the images in pixels (default: the model's)"
    )
    if kind not in BACKWARD:
        parser.add_argument("--half", action="store_true", help="float16 weights")
    parser.add_argument("--preprocessing", action="store_true", help="take uint8 RGB images instead of normalised ones")
    parser.add_argument("--tolerance", type=float, help="largest relative difference from torch to accept")
    parser.add_argument(
        "--batch", type=int, default=8, help="windows per iteration, or the fixed batch size (default: 8)"
    )
    if kind == "features":
        parser.add_argument(
            "--layers", nargs="+", action=_AddUp, required=True, metavar="LAYER", help="layers by their dotted names"
        )
    if kind == CAM:
        parser.add_argument(
            "--layer",
            dest="layers",
            nargs=1,
            default=(),
            metavar="LAYER",
            help="layer by its dotted name (default: the model's)",
        )
    if kind == "occlusion":
        parser.add_argument("--window", type=int, default=32, help="side in pixels (default: 32)")
        parser.add_argument("--stride", type=int, default=16, help="pixels between windows (default: 16)")
        parser.add_argument(
            "--strategy",
            choices=STRATEGIES,
            default="full",
            help="full (the default), or incremental: see docs/occlusion.md",
        )
    else:
        parser.add_argument("--static-batch", action="store_true", help="fix the batch size to --batch")


def _sides(text: str) -> int | tuple[int, int]:
    """``224``, or ``128x256`` as height and width."""
    sides = [int(side) for side in text.split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT, help="model name, e.g. torchvision:resnet50 (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="FOLDER")
    alone = [kind for kind in KINDS if kind != "features"]
    parser.add_argument("--kinds", nargs="+", action=_AddUp, default=ALONE, choices=alone)
    parser.add_argument("--window", type=int, default=32, help="side in pixels (default: 32)")
    parser.add_argument("--stride", type=int, default=16, help="pixels between windows (default: 16)")
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="full",
        help="full (the default), or incremental: see docs/occlusion.md",
    )


def _bundle(options: argparse.Namespace, show_steps: ShowSteps) -> int:
    with show_steps(f"loading {options.model}") as on_step:
        result = bundle(
            load(options.model, device="cpu"),
            options.output,
            kinds=options.kinds,
            window=options.window,
            stride=options.stride,
            strategy=options.strategy,
            on_step=on_step,
        )
    for report in result.reports:
        sys.stdout.write(f"{_agreement(report)}\n")
    for kind, reason in result.skipped:
        sys.stdout.write(f"no {kind}: {reason}\n")
    return 0


def _export(options: argparse.Namespace, show_steps: ShowSteps) -> int:
    # Each kind has the options that mean something for it; the others keep their defaults.
    with show_steps(f"loading {options.model}") as on_step:
        report = export(
            load(options.model, device="cpu"),
            options.command,
            options.output,
            layers=getattr(options, "layers", ()),
            window=getattr(options, "window", 32),
            stride=getattr(options, "stride", 16),
            batch=options.batch,
            opset=options.opset,
            dynamic_batch=not getattr(options, "static_batch", False),
            input_size=options.input_size,
            half=getattr(options, "half", False),
            preprocessing=options.preprocessing,
            tolerance=options.tolerance,
            strategy=getattr(options, "strategy", "full"),
            on_step=on_step,
        )
    sys.stdout.write(f"{_agreement(report)}, {report.seconds:.0f} s\n")
    if options.command == "occlusion" and report.note:
        sys.stdout.write(f"{report.note}\n")
    return 0


def _agreement(report: ExportReport) -> str:
    return f"{report.path}: agrees with torch within {report.worst.relative:.1e} ({report.worst.output})"


def _table(options: argparse.Namespace) -> int:
    kept: list[Row] = []

    def keep(row: Row) -> None:
        kept.append(row)
        if options.output is not None:  # after each row: twenty families take an hour, and Ctrl-C loses none
            with atomic_write(options.output) as draft:
                draft.write_text(json.dumps([dataclasses.asdict(one) for one in kept], indent=1) + "\n")
        _print_row(row)

    rows = compare_families(options.models, options.kinds, on_row=keep)
    sys.stdout.write(f"\n{markdown(rows)}\n")
    return int(any(row.worst is None and not row.refused for row in rows))


def _print_row(row: Row) -> None:
    outcome = f"{row.worst:.1e} in {row.seconds:.0f} s" if row.worst is not None else row.error
    sys.stdout.write(f"{row.model} {row.kind}: {outcome}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
