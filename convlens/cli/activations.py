"""``convlens activations``: what a picture makes the channels of a layer say."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

import convlens
from convlens import image
from convlens.cli.console import out, step
from convlens.cli.options import MODEL
from convlens.cli.output import MANIFEST
from convlens.errors import RequestError
from convlens.folders import replaced
from convlens.inside import drawing_activations as drawing
from convlens.inside.activations import Activations
from convlens.inside.activations import activations as activations_of
from convlens.models import load
from convlens.types import Bytes8

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
    with replaced(output) as draft:
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
        "channels": drawing.all_channels(found),
        "strongest": drawing.strongest_channels(found),
        f"channel-{channel:04}": drawing.one_channel(found, channel),
        f"overlay-{channel:04}": drawing.over_picture(found, channel, view_HWC),
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
