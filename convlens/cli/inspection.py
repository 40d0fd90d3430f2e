"""Commands that look inside a network: ``receptive-field``, ``filters`` and ``activations``."""

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
from convlens.cli.console import out, print_result, spinner
from convlens.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    FigurePath,
    LayerOption,
    ModelOption,
    PrecisionOption,
    ReplacedFolder,
)
from convlens.cli.outputs import require_png, require_replaceable
from convlens.cli.results import MANIFEST, write_figure
from convlens.errors import RequestError
from convlens.inspection.activations import (
    Activations,
    draw_all_channels,
    draw_channel,
    draw_overlay,
    draw_strongest_channels,
)
from convlens.inspection.activations import activations as activations_of
from convlens.inspection.filters import Scaling, draw_filters, layer_filters
from convlens.inspection.receptive_field import Box, ReceptiveField, receptive_fields, require_receptive_field
from convlens.instrument import find_layer
from convlens.models import load
from convlens.types import Bytes8
from convlens.utils.files import replace_folder

RANKING = "ranking.csv"
_RANKING_HEADINGS = ("rank", "channel", "largest", "row", "column")
_RANKS_SHOWN = 10


def receptive_field(
    model: ModelOption = DEFAULT_MODEL,
    layer: Annotated[str, typer.Option(help="One layer by its dotted name. Default: all layers.")] = "",
    at: Annotated[str, typer.Option(help="One unit of the layer, as ROW,COLUMN. Default: the middle one.")] = "",
    size: Annotated[
        int, typer.Option(min=0, help="Side of the input image in pixels; 0 means the model's own input size.")
    ] = 0,
) -> None:
    """Show the receptive fields of each layer, exactly; weights do not matter."""
    if at and not layer:
        raise RequestError(f"--at {at} is a unit of one layer; give --layer too", field="at")
    with spinner(f"loading {model}"):
        classifier = load(model, device="cpu")
    if layer:
        find_layer(classifier.module, layer)  # an unknown name fails before the work
    fields = receptive_fields(classifier, size or None)
    _show_fields([require_receptive_field(fields, layer)] if layer else fields.values())
    if layer:
        _show_unit(fields[layer], _parse_unit(at, fields[layer].grid))


def filters(
    output: FigurePath,
    model: Annotated[list[str], typer.Option(help="Model name; repeat the option to compare models.")] = [  # noqa: B006
        DEFAULT_MODEL
    ],
    layer: Annotated[str, typer.Option(help="Convolution by its dotted name. Default: the first one.")] = "",
    scaling: Annotated[
        Scaling, typer.Option(help="own: scale each filter by its largest weight; shared: all by one.")
    ] = "own",
) -> None:
    """Draw the filters of a convolution: in colour for the first layer, as grey grids for deeper ones."""
    require_png(output)
    filter_sets = []
    for name in model:
        with spinner(f"loading {name}"):
            filter_sets.append(layer_filters(load(name, device="cpu"), layer or None))
    write_figure(output, draw_filters(filter_sets, scaling=scaling))
    for item in filter_sets:
        print_result(f"{item.model} {item.layer}: {'×'.join(map(str, item.weights_OCHW.shape))}")
    print_result(f"figure: {output}")


def activations(
    path: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image to run the network on.")],
    layer: LayerOption,
    output: ReplacedFolder,
    channel: Annotated[int | None, typer.Option(help="Channel to enlarge. Default: the strongest one.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
) -> None:
    """Draw a layer's feature maps for one image: all channels, the strongest, and one over the image."""
    require_replaceable(output, marker=RANKING, contents="activations")
    with spinner(f"loading {model}"):
        classifier = load(model, device=device, precision=precision)
    prepared = image.prepare(image.read_channels(path, classifier.spec.channels), classifier.spec)
    result = activations_of(classifier, prepared.x_CHW, layer=layer)
    enlarged = int(result.ranking[0]) if channel is None else channel
    with replace_folder(output) as draft:
        _write_activations(draft, result, enlarged, prepared.display_HWC, path.name)
    _show_ranking(result)
    print_result(f"images: {output}")


def _show_fields(fields: Iterable[ReceptiveField]) -> None:
    table = Table(
        caption="in pixels, height first; start: where the first unit's receptive field begins, below 0 in the padding"
    )
    for heading in ("layer", "kind"):
        table.add_column(heading, overflow="fold")
    for heading in ("grid", "size", "stride", "start"):
        table.add_column(heading, justify="right", no_wrap=True)
    for field in fields:
        size = _sides(field.size) if field.uniform else f"up to {_sides(field.size)}"
        stride = _sides(field.stride) if field.stride else "–"
        start = f"{field.start[0]}, {field.start[1]}"
        table.add_row(*map(Text, (field.layer, field.kind, _sides(field.grid), size, stride, start)))
    out.print(table)


def _show_unit(field: ReceptiveField, unit: tuple[int, int]) -> None:
    print_result(f"unit at row {unit[0]}, column {unit[1]} of {field.layer}")
    print_result(f"  receptive field  {_box(field.box(*unit))}")
    print_result(f"  in the image     {_box(field.clipped(*unit))}, of {_sides(field.image_size)} pixels")


def _parse_unit(at: str, grid: tuple[int, int]) -> tuple[int, int]:
    if not at:
        return grid[0] // 2, grid[1] // 2
    parts = at.split(",")
    if len(parts) != 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise RequestError(f"--at {at} should read ROW,COLUMN, two whole numbers such as 3,4", field="at")
    return int(parts[0]), int(parts[1])


def _sides(sides: tuple[int, int]) -> str:
    return f"{sides[0]}×{sides[1]}"


def _box(box: Box) -> str:
    top, left, bottom, right = box
    return f"rows {top}..{bottom - 1}, columns {left}..{right - 1}" if bottom > top else "nothing"


def _write_activations(draft: Path, result: Activations, channel: int, view_HWC: Bytes8, name: str) -> None:
    images = {
        "view": view_HWC,
        "channels": draw_all_channels(result),
        "strongest": draw_strongest_channels(result),
        f"channel-{channel:04}": draw_channel(result, channel),
        f"overlay-{channel:04}": draw_overlay(result, channel, view_HWC),
    }
    for stem, image_HWC in images.items():
        (draft / f"{stem}.png").write_bytes(image.encode_png(image_HWC, level=6))
    np.save(draft / "maps_CHW.npy", result.maps_CHW, allow_pickle=False)
    with (draft / RANKING).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_RANKING_HEADINGS, *_ranked(result)])
    manifest = {
        "convlens": convlens.__version__,
        "model": result.model,
        "weights_sha256": result.weights_sha256,
        "picture": name,
        "layer": result.layer,
        "kind": result.kind,
        "shape": list(result.maps_CHW.shape),
        "channel": channel,
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _show_ranking(result: Activations) -> None:
    table = Table(title=f"{result.layer}: strongest of {len(result.maps_CHW)} channels")
    for heading in _RANKING_HEADINGS:
        table.add_column(heading, justify="right")
    for rank, channel, largest, y, x in list(_ranked(result))[:_RANKS_SHOWN]:
        table.add_row(str(rank), str(channel), f"{largest:.4g}", str(y), str(x))
    out.print(table)


def _ranked(result: Activations) -> Iterator[tuple[int, int, float, int, int]]:
    for rank, channel in enumerate(map(int, result.ranking), start=1):
        yield rank, channel, *result.peak(channel)
