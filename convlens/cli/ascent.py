"""``convlens ascent``: pictures that maximise classes, neurons, channels or layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from convlens.cli.jobs import DEVICE, OUTPUT, SET, run_with_bar, settings
from convlens.cli.options import MODEL
from convlens.errors import RequestError
from convlens.jobs import from_mapping


def ascent(
    output: Annotated[Path, OUTPUT],
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="CLASS…", help="Classes, by label or index; or none and --layer.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Maximise channels of this layer instead, or all of it.")] = "",
    channels: Annotated[str, typer.Option(help="Comma-separated; each gets a picture.")] = "",
    preset: Annotated[str, typer.Option(help="robust, lucid, simonyan, yosinski1 to yosinski4.")] = "robust",
    steps: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    seed: Annotated[int, typer.Option(help="Of all chance.")] = 0,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    device: Annotated[str, DEVICE] = "auto",
    option: Annotated[list[str], SET] = [],  # noqa: B006 - typer's way; never changed
) -> None:
    """Pictures that maximise classes, neurons or channels."""
    given: dict[str, Any] = {
        "kind": "ascent",
        "classes": [int(one) if one.isdigit() else one for one in targets or []],
        "layer": layer,
        "channels": _numbers(channels),
        "preset": preset,
        "steps": steps,
        "seed": seed,
        "model": model,
    }
    run_with_bar(from_mapping(given | settings(option)), output, device=device)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise RequestError(f"--channels {text} should read like 0,3,8", field="channels")
    return [int(part) for part in parts]
