"""``convlens patches``: the crops of a folder's pictures that excite each channel of a layer most."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import convlens
from convlens import image
from convlens.cli.console import console, counted, out, rated, step
from convlens.cli.options import MODEL
from convlens.cli.results import MANIFEST
from convlens.errors import RequestError
from convlens.features.image_list import find_images
from convlens.inspection.patches import (
    Backprop,
    Patch,
    Patches,
    PatchGradients,
    crop,
    crop_gradient,
    draw_channel_sheet,
    find_patches,
    visible_box,
)
from convlens.inspection.receptive_field import Box
from convlens.models import Classifier, load
from convlens.report.pages import ChannelRow, render_patches
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Bytes8, Floats
from convlens.utils.files import replace_folder

TABLE, PAGE, SHEETS = "patches.csv", "report.html", "channels"


def patches(
    pictures: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders of pictures, or one list of paths.")],
    layer: Annotated[str, typer.Option(help="A layer by its dotted name; `convlens receptive-field` lists them.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; replaced when a run of this command made it.")
    ],
    channels: Annotated[str, typer.Option(help="Such as 0,3,8-15. Default: all of them.")] = "",
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Patches a channel, at most one a picture.")] = 9,
    backprop: Annotated[
        Backprop, typer.Option(help="What is shown beside each crop: of the very neuron, down to the pixels.")
    ] = "guided",
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Find the crops that excite each channel of a layer most, in one pass over the pictures."""
    keep_freed_memory()
    _check_folder(output)
    wanted = _numbers(channels) if channels else None
    files = find_images(pictures)
    with step(f"loading {model}"):
        classifier = load(model, device=device)
    gradients = None if backprop == "none" else PatchGradients(classifier, layer, backprop=backprop)
    with rated(f"running up to {layer}", len(files)) as show:
        show(0)
        found = find_patches(classifier, files, layer=layer, channels=wanted, k=k, on_images=lambda done, _: show(done))
    for name, reason in found.unreadable:
        console.print(f"left out: {name}: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    with replace_folder(output) as draft:
        _write(draft, found, classifier, gradients, backprop)
    out.print(
        f"{sum(map(len, found.by_channel.values()))} patches of {len(found.by_channel)} channels from "
        f"{found.images} pictures\nreport: {output / PAGE}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _check_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / TABLE).is_file())):
        raise RequestError(f"{folder} holds other things than patches; choose a new folder or empty it")


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
        if match is None:
            raise RequestError(f"--channels {text} should read like 0,3,8-15", field="channels")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 100_000:
            raise RequestError(f"--channels {text}: {part.strip()} is no range; the smaller number comes first")
        found += range(first, last + 1)
    return found


def _write(
    draft: Path, found: Patches, classifier: Classifier, gradients: PatchGradients | None, backprop: Backprop
) -> None:
    (draft / SHEETS).mkdir()
    rows = []
    total = sum(map(len, found.by_channel.values()))
    with counted("drawing", total) as bar:
        for channel, drawn in _sheets(found, classifier, gradients):
            path = draft / SHEETS / f"{channel:04}.jpg"
            path.write_bytes(image.encode_jpeg(drawn, quality=92))
            some = found.by_channel[channel]
            height, width = drawn.shape[:2]
            names = [patch.image_id for patch in some]
            rows.append(ChannelRow(channel, some[0].value, f"{SHEETS}/{path.name}", width, height, names))
            bar.advance(bar.task_ids[0], len(some))
    with (draft / TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_HEADINGS, *_table(found)])
    (draft / PAGE).write_text(_page(found, rows, backprop), encoding="utf-8")
    (draft / MANIFEST).write_text(json.dumps(_manifest(found, backprop), indent=1), encoding="utf-8")


def _sheets(found: Patches, classifier: Classifier, gradients: PatchGradients | None) -> Iterator[tuple[int, Bytes8]]:
    """Channel by channel, never more than one channel's pictures in memory."""
    grey = [round(255 * mean) for mean in classifier.spec.mean]  # what padding is to the network: normalised, 0
    for channel, some in found.by_channel.items():
        views, pictures = zip(*(found.read(patch, classifier) for patch in some), strict=True)
        boxes = [visible_box(patch.box, found.receptive_field.image_size) for patch in some]
        crops = [crop(view_HWC, box, fill=grey) for view_HWC, box in zip(views, boxes, strict=True)]
        yield channel, draw_channel_sheet(crops, _gradients(some, pictures, boxes, gradients))


def _gradients(
    some: Sequence[Patch], pictures: Sequence[Floats], boxes: Sequence[Box], of: PatchGradients | None
) -> list[Floats]:
    if of is None:
        return []
    gradients = of.each([patch.neuron for patch in some], pictures)
    return [crop_gradient(grad, box) for grad, box in zip(gradients, boxes, strict=True)]


_HEADINGS = ("channel", "rank", "value", "picture", "y", "x", "top", "left", "bottom", "right")


def _table(found: Patches) -> Iterator[tuple[object, ...]]:
    for some in found.by_channel.values():
        for patch in some:
            value = np.format_float_positional(np.float32(patch.value), trim="0")
            neuron = patch.neuron
            yield neuron.channel, patch.rank, value, patch.image_id, neuron.y or 0, neuron.x or 0, *patch.box


def _page(found: Patches, rows: Sequence[ChannelRow], backprop: Backprop) -> str:
    height, width = found.receptive_field.size
    below = {
        "guided": " Below each, guided backprop of that very neuron, cut to the same pixels; grey is 0.",
        "saliency": " Below each, the gradient of that very neuron, cut to the same pixels; grey is 0.",
        "none": "",
    }
    return render_patches(
        title=f"What excites {found.layer}",
        facts=[
            ("model", found.model),
            ("weights", found.weights_sha256[:12]),
            ("layer", f"{found.layer} ({found.kind})"),
            ("field", f"{height}×{width} pixels"),
            ("pictures", f"{found.images}, {len(found.unreadable)} left out"),
        ],
        explanation=(
            "For each channel the parts of pictures that excite one of its neurons most, strongest first, at most one "
            "of each picture, cut to what the neuron sees, grey where it looks beyond the border; the whole picture "
            f"where it sees more than that.{below[backprop]}"
        ),
        rows=rows,
    )


def _manifest(found: Patches, backprop: Backprop) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": found.model,
        "weights_sha256": found.weights_sha256,
        "layer": found.layer,
        "kind": found.kind,
        "field": list(found.receptive_field.size),
        "channels": len(found.by_channel),
        "k": len(next(iter(found.by_channel.values()))),
        "backprop": backprop,
        "pictures": found.images,
        "unreadable": [list(pair) for pair in found.unreadable],
    }
