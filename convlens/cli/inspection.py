"""``convlens receptive-field``: which pixels the units of a layer look at.

``convlens filters``: the filters of a convolution as a picture, several models side by side.

``convlens activations``: what a picture makes the channels of a layer say.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

import convlens
from convlens import image
from convlens.cli.console import out, step
from convlens.cli.options import MODEL
from convlens.cli.results import MANIFEST
from convlens.errors import RequestError
from convlens.inspection.activations import (
    Activations,
    draw_all_channels,
    draw_channel,
    draw_overlay,
    draw_strongest_channels,
)
from convlens.inspection.activations import activations as activations_of
from convlens.inspection.filters import Filters, Scaling, draw_filters, layer_filters
from convlens.inspection.receptive_field import Box, ReceptiveField, receptive_fields, require_receptive_field
from convlens.instrument import find_layer
from convlens.models import load
from convlens.types import Bytes8
from convlens.utils.files import replace_folder


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
        find_layer(classifier.module, layer)  # before the work, for an early answer
    fields = receptive_fields(classifier, size or None)
    _show_table([require_receptive_field(fields, layer)] if layer else fields.values())
    if layer:
        _show_unit(fields[layer], _unit(at, fields[layer].grid))


def _show_table(fields: Iterable[ReceptiveField]) -> None:
    table = Table(caption="in pixels, height first; start: where the first unit's field begins, below 0 in the padding")
    for heading in ("layer", "kind"):
        table.add_column(heading, overflow="fold")
    for heading in ("grid", "size", "stride", "start"):
        table.add_column(heading, justify="right", no_wrap=True)
    for field in fields:
        table.add_row(*map(Text, _cells(field)))
    out.print(table)


def _cells(field: ReceptiveField) -> tuple[str, ...]:
    size = _times(field.size) if field.uniform else f"up to {_times(field.size)}"
    stride = _times(field.stride) if field.stride else "–"
    return field.layer, field.kind, _times(field.grid), size, stride, f"{field.start[0]}, {field.start[1]}"


def _show_unit(field: ReceptiveField, unit: tuple[int, int]) -> None:
    said = [f"unit at row {unit[0]}, column {unit[1]} of {field.layer}"]
    said.append(f"  field           {_box(field.box(*unit))}")
    said.append(f"  in the picture  {_box(field.clipped(*unit))}, of {_times(field.image_size)} pixels")
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


ENDING = ".png"


def filters(
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write, a .png.")],
    model: Annotated[list[str], typer.Option(help="Model name; give it several times for several models.")] = [  # noqa: B006
        "packaged:efficientnet_lite0"
    ],
    layer: Annotated[str, typer.Option(help="A convolution by its dotted name. Default: the first one.")] = "",
    scaling: Annotated[Scaling, typer.Option(help="Each filter to its own largest weight, or all to one.")] = "own",
) -> None:
    """Draw the filters of a convolution: the first one's in colour, deeper ones' as grids of greys."""
    if output.suffix.lower() != ENDING:
        raise RequestError(f"{output} should end in {ENDING}: the figure is written as PNG")
    found = [_of(name, layer) for name in model]
    data = image.encode_png(draw_filters(found, scaling=scaling), level=6)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(data)
    for one in found:
        shape = "×".join(map(str, one.weights_OCHW.shape))
        out.print(f"{one.model} {one.layer}: {shape}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"figure: {output}", markup=False, highlight=False, soft_wrap=True)


def _of(model: str, layer: str) -> Filters:
    with step(f"loading {model}"):
        return layer_filters(load(model, device="cpu"), layer or None)


SHOWN = 10


def activations(
    picture: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")],
    layer: Annotated[str, typer.Option(help="A layer by its dotted name; `convlens receptive-field` lists them.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; replaced when a run of this command made it.")
    ],
    channel: Annotated[int | None, typer.Option(help="Channel to enlarge. Default: the strongest one.")] = None,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw all channels of a layer for one picture, the strongest ones, and one laid over the picture."""
    _check_folder(output)
    with step(f"loading {model}"):
        classifier = load(model, device=device)
    prepared = image.prepare(image.read(picture), classifier.spec)
    found = activations_of(classifier, prepared.x_CHW, layer=layer)
    chosen = int(found.ranking[0]) if channel is None else channel
    with replace_folder(output) as draft:
        _write(draft, found, chosen, prepared.view_HWC, picture.name)
    _show(found)
    out.print(f"pictures: {output}", markup=False, highlight=False, soft_wrap=True)


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "ranking.csv").is_file()):
        raise RequestError(f"{folder} holds other things than activations; choose a new folder or empty it")


def _write(draft: Path, found: Activations, channel: int, view_HWC: Bytes8, name: str) -> None:
    pictures = {
        "view": view_HWC,
        "channels": draw_all_channels(found),
        "strongest": draw_strongest_channels(found),
        f"channel-{channel:04}": draw_channel(found, channel),
        f"overlay-{channel:04}": draw_overlay(found, channel, view_HWC),
    }
    for stem, picture_HWC in pictures.items():
        (draft / f"{stem}.png").write_bytes(image.encode_png(picture_HWC, level=6))
    np.save(draft / "maps_CHW.npy", found.maps_CHW, allow_pickle=False)
    with (draft / "ranking.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("rank", "channel", "largest", "row", "column"), *_ranked(found)])
    (draft / MANIFEST).write_text(json.dumps(_manifest(found, channel, name), indent=1), encoding="utf-8")


def _ranked(found: Activations) -> Iterator[tuple[int, int, float, int, int]]:
    for rank, channel in enumerate(map(int, found.ranking), start=1):
        yield rank, channel, *found.peak(channel)


def _manifest(found: Activations, channel: int, name: str) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": found.model,
        "weights_sha256": found.weights_sha256,
        "picture": name,
        "layer": found.layer,
        "kind": found.kind,
        "shape": list(found.maps_CHW.shape),
        "channel": channel,
    }


def _show(found: Activations) -> None:
    table = Table(title=f"{found.layer}: strongest of {len(found.maps_CHW)} channels")
    for heading in ("rank", "channel", "largest", "row", "column"):
        table.add_column(heading, justify="right")
    for rank, channel, largest, y, x in list(_ranked(found))[:SHOWN]:
        table.add_row(str(rank), str(channel), f"{largest:.4g}", str(y), str(x))
    out.print(table)
