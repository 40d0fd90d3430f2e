"""``convlens dream``: DeepDream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from convlens.cli.jobs import DEVICE, OUTPUT, SET, layer_names, run_with_bar, settings
from convlens.cli.options import MODEL
from convlens.jobs import from_mapping


def dream(
    picture: Annotated[Path, typer.Argument(metavar="IMAGE", help="Of any size.")],
    output: Annotated[Path, OUTPUT],
    layers: Annotated[str, typer.Option(help="Comma-separated; what they see is exaggerated.")] = "",
    guide: Annotated[Path | None, typer.Option(help="A picture whose features to dream of.")] = None,
    octaves: Annotated[int, typer.Option(help="Sizes, each 1.4 times the one before.")] = 4,
    steps: Annotated[int, typer.Option(help="Steps at each size.")] = 20,
    side: Annotated[int | None, typer.Option(help="Resize the longer side to so many pixels first.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of a zoom into the dream, written as video.mp4.")] = 0,
    seed: Annotated[int, typer.Option(help="Of all chance.")] = 0,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    device: Annotated[str, DEVICE] = "auto",
    option: Annotated[list[str], SET] = [],  # noqa: B006 - typer's way; never changed
) -> None:
    """DeepDream: what a layer sees in a picture, exaggerated."""
    given: dict[str, Any] = {
        "kind": "dream",
        "picture": str(picture),
        "octaves": octaves,
        "steps": steps,
        "side": side,
        "frames": frames,
        "seed": seed,
        "model": model,
    }
    if layers:
        given["layers"] = layer_names(layers)
    if guide:
        given["guide"] = str(guide)
    run_with_bar(from_mapping(given | settings(option)), output, device=device, video=frames > 0)
