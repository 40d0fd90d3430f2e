"""``convlens ascent``: pictures that maximise classes, neurons, channels or layers.

``convlens dream``: DeepDream.

``convlens fool``: the smallest change that turns one class into another.

``convlens invert``: what a layer's features still tell of a picture.

``convlens texture``: new texture from a sample, by three methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convlens.cli.jobs import DEVICE, OUTPUT, SET, layer_names, run_with_bar, settings
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
