"""``convlens receptive-field``: which pixels the units of a layer look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from convlens.cli.console import out, step
from convlens.cli.options import MODEL
from convlens.errors import RequestError
from convlens.inside.fields import Box, Field
from convlens.inside.receptive import field_of, receptive_fields
from convlens.instrument import layer_of
from convlens.models import load


def receptive_field(
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    layer: Annotated[str, typer.Option(help="One layer by its dotted name. Default: all of them.")] = "",
    at: Annotated[str, typer.Option(help="One unit of the layer, as ROW,COLUMN. Default: the one in the middle.")] = "",
    size: Annotated[int, typer.Option(min=0, help="Side of the picture. Default: what the model is fed.")] = 0,
) -> None:
    """Which pixels the units of each layer look at: exact, from the network's own steps; weights do not matter."""
    if at and not layer:
        raise RequestError(f"--at {at} is a unit of one layer; give --layer too", field="at")
    with step(f"loading {model}"):
        classifier = load(model, device="cpu")
    if layer:
        layer_of(classifier.module, layer)  # before the work, for an early answer
    fields = receptive_fields(classifier, size or None)
    _show_table([field_of(fields, layer)] if layer else fields.values())
    if layer:
        _show_unit(fields[layer], _unit(at, fields[layer].grid))


def _show_table(fields: Iterable[Field]) -> None:
    table = Table(caption="in pixels, height first; start: where the first unit's field begins, below 0 in the padding")
    for heading in ("layer", "kind"):
        table.add_column(heading, overflow="fold")
    for heading in ("grid", "size", "stride", "start"):
        table.add_column(heading, justify="right", no_wrap=True)
    for field in fields:
        table.add_row(*map(Text, _cells(field)))
    out.print(table)


def _cells(field: Field) -> tuple[str, ...]:
    size = _times(field.size) if field.uniform else f"up to {_times(field.size)}"
    stride = _times(field.stride) if field.stride else "–"
    return field.layer, field.kind, _times(field.grid), size, stride, f"{field.start[0]}, {field.start[1]}"


def _show_unit(field: Field, unit: tuple[int, int]) -> None:
    said = [f"unit at row {unit[0]}, column {unit[1]} of {field.layer}"]
    said.append(f"  field           {_box(field.box(*unit))}")
    said.append(f"  in the picture  {_box(field.clipped(*unit))}, of {_times(field.picture)} pixels")
    for line in said:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _unit(at: str, grid: tuple[int, int]) -> tuple[int, int]:
    if not at:
        return grid[0] // 2, grid[1] // 2
    parts = at.split(",")
    if len(parts) != 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise RequestError(f"--at {at} should read ROW,COLUMN, two whole numbers such as 3,4", field="at")
    return int(parts[0]), int(parts[1])


def _times(sides: tuple[int, int]) -> str:
    return f"{sides[0]}×{sides[1]}"


def _box(box: Box) -> str:
    top, left, bottom, right = box
    return f"rows {top}..{bottom - 1}, columns {left}..{right - 1}" if bottom > top else "nothing"
