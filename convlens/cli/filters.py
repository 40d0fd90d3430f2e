"""``convlens filters``: the filters of a convolution as a picture, several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens import image
from convlens.cli.console import out, step
from convlens.errors import RequestError
from convlens.inside.drawing_filters import Scaling, filters_figure
from convlens.inside.filters import Filters, layer_filters
from convlens.models import load

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
    data = image.encode_png(filters_figure(found, scaling=scaling), level=6)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(data)
    for one in found:
        shape = "×".join(map(str, one.weights_OCHW.shape))
        out.print(f"{one.model} {one.layer}: {shape}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"figure: {output}", markup=False, highlight=False, soft_wrap=True)


def _of(model: str, layer: str) -> Filters:
    with step(f"loading {model}"):
        return layer_filters(load(model, device="cpu"), layer or None)
