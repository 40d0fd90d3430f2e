"""``convlens fool``: the smallest change that turns one class into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.cli.jobs import DEVICE, OUTPUT, SET, run_with_bar, settings
from convlens.cli.options import MODEL
from convlens.jobs import from_mapping


def fool(
    picture: Annotated[Path, typer.Argument(metavar="IMAGE")],
    target: Annotated[str, typer.Option(help="The class it shall be taken for, by label or index.")],
    output: Annotated[Path, OUTPUT],
    norm: Annotated[str, typer.Option(help="What is to be small: l2, or linf, the largest change.")] = "l2",
    steps: Annotated[int, typer.Option(help="How long to look for a smaller change.")] = 150,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    device: Annotated[str, DEVICE] = "auto",
    option: Annotated[list[str], SET] = [],  # noqa: B006 - typer's way; never changed
) -> None:
    """The smallest change that turns one class into another, in a PNG that is taken for it."""
    given = {
        "kind": "fool",
        "picture": str(picture),
        "target": int(target) if target.isdigit() else target,
        "norm": norm,
        "steps": steps,
        "model": model,
    }
    run_with_bar(from_mapping(given | settings(option)), output, device=device)
