"""``convlens texture``: new texture from a sample, by three methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convlens.cli.jobs import DEVICE, OUTPUT, SET, layer_names, run_with_bar, settings
from convlens.cli.options import MODEL
from convlens.errors import RequestError
from convlens.jobs import from_mapping

Method = Literal["gram", "quilt", "efros"]
_KINDS = {"gram": "texture", "quilt": "quilt", "efros": "efros"}


def texture(
    source: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of the texture.")],
    output: Annotated[Path, OUTPUT],
    method: Annotated[
        Method, typer.Option(help="gram: a network's features; quilt: blocks of the source; efros: pixel by pixel.")
    ] = "gram",
    size: Annotated[str, typer.Option(help="Of the texture, WIDTHxHEIGHT.")] = "",
    layers: Annotated[str, typer.Option(help="Comma-separated; of gram.")] = "",
    steps: Annotated[int | None, typer.Option(help="Steps at each scale; of gram.")] = None,
    seed: Annotated[int, typer.Option(help="Of all chance.")] = 0,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    device: Annotated[str, DEVICE] = "auto",
    option: Annotated[list[str], SET] = [],  # noqa: B006 - typer's way; never changed
) -> None:
    """New texture from a sample: Gram matrices, quilting, Efros-Leung."""
    given: dict[str, Any] = {"kind": _KINDS[method], "source": str(source), "seed": seed}
    if size:
        width, times, height = size.partition("x")
        if not (times and width.isdigit() and height.isdigit()):
            raise RequestError(f"--size {size} should read WIDTHxHEIGHT, such as 512x256", field="size")
        given |= {"width": int(width), "height": int(height)}
    if method == "gram":
        given["model"] = model
        if layers:
            given["layers"] = layer_names(layers)
        if steps is not None:
            given["steps"] = steps
    elif layers or steps is not None:
        raise RequestError(f"--layers and --steps are of gram; {method} has none", field="method")
    run_with_bar(from_mapping(given | settings(option)), output, device=device)
