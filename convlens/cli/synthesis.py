"""The synthesis commands: ``ascent``, ``dream``, ``fool``, ``invert`` and ``texture``. Each runs one job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convlens.cli.jobs import run_single_job
from convlens.cli.options import (
    DEFAULT_MODEL,
    DeviceOption,
    JobFolder,
    JobSettings,
    LayersOption,
    ModelOption,
    PrecisionOption,
    SeedOption,
    job_settings,
    parse_channels,
    parse_class,
    parse_names,
)
from convlens.errors import RequestError
from convlens.jobs import from_mapping
from convlens.types import ArithmeticPrecision

TextureMethod = Literal["gram", "quilt", "efros"]
_TEXTURE_KINDS = {"gram": "texture", "quilt": "quilt", "efros": "efros"}
_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")

Original = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image of any size.")]


def ascent(
    output: JobFolder,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="CLASS…", help="Target classes, by label or index; or none, and --layer."),
    ] = None,
    layer: Annotated[str, typer.Option(help="Maximise channels of this layer, or all of it, instead of classes.")] = "",
    channels: Annotated[
        list[str], typer.Option(help="Channels of --layer, such as 0,3,8-15; may be repeated; one image for each.")
    ] = [],  # noqa: B006 - typer's way; never changed
    preset: Annotated[str, typer.Option(help="Preset: robust, lucid, simonyan, yosinski1 to yosinski4.")] = "robust",
    steps: Annotated[int | None, typer.Option(help="Optimisation steps. Default: the preset's.")] = None,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    option: JobSettings = [],  # noqa: B006 - typer's way; never changed
) -> None:
    """Activation maximisation: images that maximise classes, neurons, channels or a layer."""
    job: dict[str, Any] = {
        "kind": "ascent",
        "classes": [parse_class(target) for target in targets or []],
        "layer": layer,
        "channels": parse_channels(channels),
        "preset": preset,
        "steps": steps,
        "seed": seed,
        "model": model,
    }
    _run(job, option, output, device=device, precision=precision)


def dream(
    original: Original,
    output: JobFolder,
    layers: LayersOption = [],  # noqa: B006
    guide: Annotated[
        Path | None, typer.Option(help="Guide image: each place grows like the most similar place of the guide.")
    ] = None,
    octaves: Annotated[int, typer.Option(help="Number of scales, each 1.4 times the one before.")] = 4,
    steps: Annotated[int, typer.Option(help="Optimisation steps at each scale.")] = 20,
    side: Annotated[int | None, typer.Option(help="Resize the longer side to this many pixels first.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of a zoom into the result, written as video.mp4.")] = 0,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    option: JobSettings = [],  # noqa: B006
) -> None:
    """DeepDream: exaggerate in an image what activates a layer."""
    job: dict[str, Any] = {
        "kind": "dream",
        "picture": str(original),
        "octaves": octaves,
        "steps": steps,
        "side": side,
        "frames": frames,
        "seed": seed,
        "model": model,
    }
    if layers:
        job["layers"] = parse_names(layers)
    if guide:
        job["guide"] = str(guide)
    _run(job, option, output, device=device, precision=precision, video=frames > 0)


def fool(
    original: Original,
    target: Annotated[str, typer.Option(help="Target class (label or index).")],
    output: JobFolder,
    norm: Annotated[str, typer.Option(help="Norm of the change to minimise: l2, or linf (the largest change).")] = "l2",
    steps: Annotated[int, typer.Option(help="Steps of the search for a smaller change.")] = 150,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    option: JobSettings = [],  # noqa: B006
) -> None:
    """Adversarial example: the smallest change to an image that makes the model predict the target class."""
    job: dict[str, Any] = {
        "kind": "fool",
        "picture": str(original),
        "target": parse_class(target),
        "norm": norm,
        "steps": steps,
        "model": model,
    }
    _run(job, option, output, device=device, precision=precision)


def invert(
    original: Original,
    output: JobFolder,
    layers: LayersOption = [],  # noqa: B006
    others: Annotated[
        list[Path], typer.Option(help="Other images; the second error is relative to the distances between them.")
    ] = [],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Optimisation steps per layer.")] = 200,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    option: JobSettings = [],  # noqa: B006
) -> None:
    """Feature inversion: reconstruct an image from a layer's features, one image per layer."""
    job: dict[str, Any] = {
        "kind": "invert",
        "picture": str(original),
        "others": [str(path) for path in others or _photographs(original)],
        "steps": steps,
        "seed": seed,
        "model": model,
    }
    if layers:
        job["layers"] = parse_names(layers)
    _run(job, option, output, device=device, precision=precision)


def texture(
    source: Annotated[Path, typer.Argument(metavar="IMAGE", help="Sample of the texture.")],
    output: JobFolder,
    method: Annotated[
        TextureMethod,
        typer.Option(help="gram: Gram matrices of features; quilt: blocks of the sample; efros: pixel by pixel."),
    ] = "gram",
    size: Annotated[str, typer.Option(help="Size of the result in pixels, WIDTHxHEIGHT.")] = "",
    layers: LayersOption = [],  # noqa: B006
    steps: Annotated[int | None, typer.Option(help="Optimisation steps at each scale (gram).")] = None,
    seed: SeedOption = 0,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    option: JobSettings = [],  # noqa: B006
) -> None:
    """Texture synthesis from a sample: Gram matrices, quilting or Efros-Leung."""
    job: dict[str, Any] = {"kind": _TEXTURE_KINDS[method], "source": str(source), "seed": seed}
    if size:
        job |= _parse_size(size)
    if method == "gram":
        job["model"] = model
        if layers:
            job["layers"] = parse_names(layers)
        if steps is not None:
            job["steps"] = steps
    elif layers or steps is not None:
        raise RequestError(f"--layers and --steps are options of gram; {method} has none", field="method")
    _run(job, option, output, device=device, precision=precision)


def _run(
    job: dict[str, Any],
    settings: Sequence[str],
    output: Path,
    *,
    device: str,
    precision: ArithmeticPrecision,
    video: bool = False,
) -> None:
    """Run the job that the command's own options and those of ``--set`` describe; the latter win."""
    description = from_mapping(job | job_settings(settings))
    run_single_job(description, output, device=device, precision=precision, video=video)


def _parse_size(text: str) -> dict[str, int]:
    width, times, height = text.partition("x")
    if not (times and width.isdecimal() and height.isdecimal()):
        raise RequestError(f"--size {text} should read WIDTHxHEIGHT, such as 512x256", field="size")
    return {"width": int(width), "height": int(height)}


def _photographs(but: Path) -> list[Path]:
    """scikit-image's photographs other than this one; none where it is not installed."""
    try:
        import skimage
    except ImportError:
        return []
    files = (Path(skimage.__file__).parent / "data" / name for name in _PHOTOGRAPHS)
    return [file for file in files if file.is_file() and file.resolve() != but.resolve()]
