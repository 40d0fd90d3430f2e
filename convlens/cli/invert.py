"""``convlens invert``: what a layer's features still tell of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from convlens.cli.jobs import DEVICE, OUTPUT, SET, layer_names, run_with_bar, settings
from convlens.cli.options import MODEL
from convlens.jobs import from_mapping


def invert(
    picture: Annotated[Path, typer.Argument(metavar="IMAGE")],
    output: Annotated[Path, OUTPUT],
    layers: Annotated[str, typer.Option(help="Comma-separated, from shallow to deep; each gets a picture.")] = "",
    others: Annotated[
        list[Path], typer.Option(help="Other pictures, whose distances are the measure of the second error.")
    ] = [],  # noqa: B006 - typer's way; never changed
    steps: Annotated[int, typer.Option(help="Steps a layer.")] = 200,
    seed: Annotated[int, typer.Option(help="Of all chance.")] = 0,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    device: Annotated[str, DEVICE] = "auto",
    option: Annotated[list[str], SET] = [],  # noqa: B006
) -> None:
    """Feature inversion: the picture that a layer's features still tell."""
    given: dict[str, Any] = {
        "kind": "invert",
        "picture": str(picture),
        "others": [str(path) for path in others or _photographs(picture)],
        "steps": steps,
        "seed": seed,
        "model": model,
    }
    if layers:
        given["layers"] = layer_names(layers)
    run_with_bar(from_mapping(given | settings(option)), output, device=device)


def _photographs(but: Path) -> list[Path]:
    """scikit-image's, where it is installed."""
    try:
        import skimage
    except ImportError:
        return []
    folder = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    found = [folder / name for name in names if (folder / name).is_file()]
    return [path for path in found if path.resolve() != but.resolve()]
