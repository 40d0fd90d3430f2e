"""``convlens patches``: the crops of a folder's images that excite each channel of a layer most."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import convlens
from convlens import image
from convlens.cli.console import (
    print_message,
    print_result,
    print_skipped,
    print_warning,
    progress_bar,
    spinner,
    throughput_bar,
)
from convlens.cli.interrupts import exit_code
from convlens.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    LayerOption,
    ModelOption,
    PrecisionOption,
    ReplacedFolder,
    parse_channels,
)
from convlens.cli.outputs import require_replaceable
from convlens.cli.results import MANIFEST, REPORT
from convlens.features.image_list import find_images
from convlens.inspection.patch_sheet import crop, crop_gradient, draw_channel_sheet, visible_box
from convlens.inspection.patches import Backprop, Patch, Patches, PatchGradients, find_patches
from convlens.inspection.receptive_field import Box
from convlens.models import Classifier, load
from convlens.report.pages import ChannelRow, render_patches
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Bytes8, Floats
from convlens.utils.files import replace_folder
from convlens.utils.interrupts import deferred_interrupts

TABLE, SHEETS = "patches.csv", "channels"
_HEADINGS = ("channel", "rank", "value", "picture", "y", "x", "top", "left", "bottom", "right")


def patches(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders of images, or one text file with one path a line.")
    ],
    layer: LayerOption,
    output: ReplacedFolder,
    channels: Annotated[
        list[str], typer.Option(help="Channels, such as 0,3,8-15; may be repeated. Default: all.")
    ] = [],  # noqa: B006 - typer's way; never changed
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="Patches per channel, at most one from an image.")] = 9,
    backprop: Annotated[
        Backprop, typer.Option(help="Gradient of the patch's own neuron to draw under each crop, by this ReLU rule.")
    ] = "guided",
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
) -> None:
    """Find the image crops that excite each channel of a layer most, in one pass over the images."""
    keep_freed_memory()
    require_replaceable(output, marker=TABLE, contents="patches")
    selected = parse_channels(channels) or None
    files = find_images(pictures)
    with spinner(f"loading {model}"):
        classifier = load(model, device=device, precision=precision)
    gradients = None if backprop == "none" else PatchGradients(classifier, layer, backprop=backprop)
    with deferred_interrupts() as interruption, throughput_bar(f"running up to {layer}", len(files)) as update:
        update(0)
        result = find_patches(
            classifier,
            files,
            layer=layer,
            channels=selected,
            k=k,
            on_images=lambda done, _: update(done),
            stop=lambda: bool(interruption.received),
        )
    print_skipped(result.unreadable)
    if interruption.received:
        print_warning(f"interrupted: {result.images} of {len(files)} images have run")
        if not result.images:
            raise typer.Exit(exit_code(interruption.received))
        print_message("drawing their patches; interrupt once more to stop after the channel that is being drawn")
    with replace_folder(output) as draft:
        # Drawing may take as long again, so it can be interrupted by itself.
        with deferred_interrupts() as again:
            rows = _draw(draft, result, classifier, gradients, stop=lambda: bool(again.received))
        drawn = replace(result, by_channel={row.channel: result.by_channel[row.channel] for row in rows})
        _write(draft, drawn, rows, backprop)
    if again.received:
        print_warning(f"interrupted: {len(rows)} of {len(result.by_channel)} channels are drawn")
    count = sum(map(len, drawn.by_channel.values()))
    print_result(f"{count} patches of {len(rows)} channels from {result.images} images\nreport: {output / REPORT}")
    if received := interruption.received or again.received:
        raise typer.Exit(exit_code(received))


def _draw(
    draft: Path,
    result: Patches,
    classifier: Classifier,
    gradients: PatchGradients | None,
    *,
    stop: Callable[[], bool],
) -> list[ChannelRow]:
    """The sheets of all channels, or of those before ``stop`` returns True."""
    (draft / SHEETS).mkdir()
    rows: list[ChannelRow] = []
    with progress_bar("drawing", sum(map(len, result.by_channel.values()))) as bar:
        for channel, sheet_HWC in _sheets(result, classifier, gradients):
            path = draft / SHEETS / f"{channel:04}.jpg"
            path.write_bytes(image.encode_jpeg(sheet_HWC, quality=92))
            best = result.by_channel[channel]
            height, width = sheet_HWC.shape[:2]
            names = [patch.image_id for patch in best]
            rows.append(ChannelRow(channel, best[0].value, f"{SHEETS}/{path.name}", width, height, names))
            bar.advance(bar.task_ids[0], len(best))
            if stop():
                break
    return rows


def _write(draft: Path, result: Patches, rows: Sequence[ChannelRow], backprop: Backprop) -> None:
    with (draft / TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_HEADINGS, *_table_rows(result)])
    (draft / REPORT).write_text(_page(result, rows, backprop), encoding="utf-8")
    (draft / MANIFEST).write_text(json.dumps(_manifest(result, backprop), indent=1), encoding="utf-8")


def _sheets(result: Patches, classifier: Classifier, gradients: PatchGradients | None) -> Iterator[tuple[int, Bytes8]]:
    """Channel by channel, so that no more than one channel's images are in memory."""
    # The normalised mean is 0, which is what zero padding is to the network.
    padding = image.displayed_mean(classifier.spec)
    for channel, best in result.by_channel.items():
        views, inputs = zip(*(result.read(patch, classifier) for patch in best), strict=True)
        boxes = [visible_box(patch.box, result.receptive_field.image_size) for patch in best]
        crops = [crop(view_HWC, box, fill=padding) for view_HWC, box in zip(views, boxes, strict=True)]
        yield (
            channel,
            draw_channel_sheet(
                crops,
                _gradients(best, inputs, boxes, gradients),
                captions=[f"{patch.value:.4g} {Path(patch.image_id).name}" for patch in best],
            ),
        )


def _gradients(
    patches: Sequence[Patch], inputs: Sequence[Floats], boxes: Sequence[Box], gradients: PatchGradients | None
) -> list[Floats]:
    if gradients is None:
        return []
    whole = gradients.each([patch.neuron for patch in patches], inputs)
    return [crop_gradient(grad, box) for grad, box in zip(whole, boxes, strict=True)]


def _table_rows(result: Patches) -> Iterator[tuple[object, ...]]:
    for best in result.by_channel.values():
        for patch in best:
            value = np.format_float_positional(np.float32(patch.value), trim="0")
            neuron = patch.neuron
            yield neuron.channel, patch.rank, value, patch.image_id, neuron.y or 0, neuron.x or 0, *patch.box


def _page(result: Patches, rows: Sequence[ChannelRow], backprop: Backprop) -> str:
    height, width = result.receptive_field.size
    below = {
        "guided": " Below each crop, guided backprop of that neuron, cut to the same pixels; grey is 0.",
        "saliency": " Below each crop, the gradient of that neuron, cut to the same pixels; grey is 0.",
        "none": "",
    }
    return render_patches(
        title=f"What excites {result.layer}",
        facts=[
            ("model", result.model),
            ("weights", result.weights_sha256[:12]),
            ("layer", f"{result.layer} ({result.kind})"),
            ("receptive field", f"{height}×{width} pixels"),
            ("images", f"{result.images}, {len(result.unreadable)} skipped"),
        ],
        explanation=(
            "For each channel, the image crops that excite one of its neurons most, strongest first, at most one from "
            "each image. A crop is the neuron's receptive field, grey where it reaches beyond the border; it is the "
            f"whole image where the receptive field is larger than that.{below[backprop]}"
        ),
        rows=rows,
    )


def _manifest(result: Patches, backprop: Backprop) -> dict[str, object]:
    return {
        "convlens": convlens.__version__,
        "model": result.model,
        "weights_sha256": result.weights_sha256,
        "layer": result.layer,
        "kind": result.kind,
        "field": list(result.receptive_field.size),
        "channels": len(result.by_channel),
        "k": len(next(iter(result.by_channel.values()))),
        "backprop": backprop,
        "pictures": result.images,
        "unreadable": [list(pair) for pair in result.unreadable],
    }
