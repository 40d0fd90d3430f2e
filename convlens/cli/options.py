"""Arguments and options that several commands share, and the parsers of those that are more than a number or a path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from convlens import explain, models
from convlens.errors import RequestError
from convlens.evaluation.recommendation import Recommendation, read_recommendation
from convlens.instrument import use_precision
from convlens.types import ArithmeticPrecision

DEFAULT_MODEL = models.DEFAULT
_RECOMMENDED, _NEIGHBOURS = "recommended", "neighbours"
REPLACED = "Folder for the results; replaced if an earlier run of this command wrote it."

Images = Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Query images.")]
GalleryPath = Annotated[Path, typer.Argument(metavar="GALLERY", help="Folder written by `convlens gallery build`.")]

ModelOption = Annotated[str, typer.Option(help="Model name, such as torchvision:resnet50; see `convlens models`.")]
DeviceOption = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")]


def _use_precision(value: ArithmeticPrecision) -> ArithmeticPrecision:
    use_precision(value)
    return value


PRECISION = "float32: IEEE arithmetic on every device; tf32: a GPU may round to TF32, faster; half: sweeps in half."
PrecisionOption = Annotated[ArithmeticPrecision, typer.Option(callback=_use_precision, help=PRECISION)]
LayerOption = Annotated[
    str, typer.Option(help="Layer by its dotted name; `convlens receptive-field` lists the layers.")
]
# Options that take a list add up wherever they are repeated, and each value may hold several with commas between them.
LayersOption = Annotated[
    list[str],
    typer.Option(
        help="Layers by their dotted names, comma-separated; may be repeated. Default: chosen from the network."
    ),
]
GraphOption = Annotated[
    Path | None,
    typer.Option(help="Graph of `convlens export embedding` to run instead of the network; twice as fast on CPUs."),
]
AccelerateOption = Annotated[
    bool,
    typer.Option(
        envvar="CONVLENS_ACCELERATE",
        help="On a CPU, export the network once for this machine and run it on ONNX Runtime from then on.",
    ),
]
RayOption = Annotated[
    str, typer.Option(help="Run on a Ray cluster: its address, or `local` to start one on this machine.")
]
StoreOption = Annotated[Path, typer.Option(help="Folder that holds the archives.")]
SeedOption = Annotated[int, typer.Option(help="Random seed.")]

ReplacedFolder = Annotated[Path, typer.Option("--output", "-o", help=REPLACED)]
SingleFileOption = Annotated[
    bool, typer.Option("--single-file", help="Put all images into report.html itself, to send it to somebody.")
]
ImagesToRead = Annotated[
    list[Path], typer.Argument(help="A folder of images, images, or a text file with one path a line.")
]
ResumedFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write; run the same command again to resume it.")
]
OverwriteOption = Annotated[bool, typer.Option(help="Replace a finished result, or one begun with other settings.")]
FigurePath = Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")]
JobFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder of the job; run the same command again to resume it.")
]

TargetOption = Annotated[str, typer.Option(help="Target class (label or index). Default: the predicted class.")]
NeuronOption = Annotated[
    str,
    typer.Option(
        help="Target neuron instead of a class: LAYER:CHANNEL (where the channel is strongest) or LAYER:CHANNEL@Y,X."
    ),
]
TrueClassesOption = Annotated[
    str,
    typer.Option(help="True classes: `folder` (an image's folder is its class) or a CSV table (file, label)."),
]
EvaluationOption = Annotated[
    Path | None,
    typer.Option(help="Folder written by `convlens evaluate` for this model; its methods are `--methods recommended`."),
]
TopKOption = Annotated[int, typer.Option(help="Number of classes to list.")]
MethodSettings = Annotated[
    list[str], typer.Option("--set", help="Option of a method, such as occlusion.window=48; may be repeated.")
]
JobSettings = Annotated[
    list[str],
    typer.Option("--set", help="Any other option of the job, as NAME=VALUE; `convlens jobs kinds` lists them."),
]


def parse_methods(
    values: Sequence[str], recommendation: Recommendation | None = None, *, with_gallery: bool = False
) -> list[str]:
    """The methods of an option's values, each known and once; ``all`` is every method, neighbours only where there is a
    gallery to find them in, and ``recommended`` those of ``recommendation``.

    Raises RequestError for an unknown name, with the closest known one.
    """
    every = [name for name in explain.available_methods() if with_gallery or name != _NEIGHBOURS]
    groups: dict[str, Sequence[str]] = {"all": every}
    if recommendation is not None:
        groups[_RECOMMENDED] = recommendation.methods
    given = [name for value in parse_names(values) for name in groups.get(value, [value])]
    for name in given:
        explain.get(name)
    return list(dict.fromkeys(given))


def recommended(methods: Sequence[str], evaluation: Path | None) -> Recommendation | None:
    """The recommendation that ``recommended`` among the methods asks for; None where it is not among them.

    Raises RequestError where only one of ``--methods recommended`` and ``--evaluation`` is given, and for a folder
    without a usable evaluation.
    """
    if _RECOMMENDED in parse_names(methods):
        if evaluation is None:
            raise RequestError(
                "--methods recommended takes the methods from an evaluation of the model; give its folder by "
                "--evaluation, make one with `convlens evaluate`, or name the methods",
                field="methods",
            )
        return read_recommendation(evaluation)
    if evaluation is not None:
        raise RequestError(
            f"--evaluation {evaluation} is read for --methods recommended only; add that, or leave it out",
            field="evaluation",
        )
    return None


def parse_names(values: Sequence[str]) -> list[str]:
    """The names in an option's values, each of which may hold several with commas between them; empty ones left out."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def method_params(
    names: Sequence[str], settings: Sequence[str], evaluated: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The ``methods`` of a request, with settings such as ``occlusion.window=48`` as options of their method.

    ``evaluated`` holds options by method that apply where no setting says otherwise.
    """
    methods: dict[str, dict[str, Any]] = {name: {"method": name, "options": {}} for name in names}
    for setting in settings:
        name, dot, rest = setting.partition(".")
        key, equals, value = rest.partition("=")
        if not dot or not equals or name not in methods:
            raise RequestError(
                f"--set {setting} should read METHOD.OPTION=VALUE with one of the methods asked for: "
                f"{', '.join(methods)}"
            )
        _require_once(methods[name]["options"], key, setting)
        methods[name]["options"][key] = _parse_value(value)
    for name in methods.keys() & (evaluated or {}).keys():
        methods[name]["options"] = {**(evaluated or {})[name], **methods[name]["options"]}
    return list(methods.values())


def job_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The options of a job in ``NAME=VALUE`` texts; dashes in names stand for underscores."""
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise RequestError(f"--set {setting} should read NAME=VALUE, such as steps=256")
        key = name.replace("-", "_")
        _require_once(options, key, setting)
        options[key] = _parse_value(value)
    return options


def _require_once(options: Mapping[str, Any], key: str, setting: str) -> None:
    if key in options:
        raise RequestError(
            f"--set {setting}: {key} is set to {json.dumps(options[key])} already; set it once, a list as [1, 2]",
            field=key,
        )


def target_param(target: str, neuron: str) -> dict[str, Any]:
    """The request's ``target``: a class by label or index, or a neuron; empty if both texts are."""
    if target and neuron:
        raise RequestError("--target names a class and --neuron a neuron; give one of them", field="target")
    if neuron:
        return {"target": _parse_neuron(neuron)}
    return {"target": parse_class(target)} if target else {}


def parse_class(text: str) -> int | str:
    """A class index where the text is a number, else a label."""
    return int(text) if text.isdecimal() else text


def parse_channels(values: Sequence[str]) -> list[int]:
    """The channels in an option's values such as ``0,3,8-15``; empty for no value."""
    channels: list[int] = []
    text = ",".join(values)
    for part in parse_names(values):
        match = re.fullmatch(r"([0-9]+)(?:\s*-\s*([0-9]+))?", part)
        if match is None:
            raise RequestError(f"--channels {text} should read like 0,3,8-15", field="channels")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 100_000:
            raise RequestError(
                f"--channels {text}: {part} is no range; the smaller number comes first", field="channels"
            )
        channels += range(first, last + 1)
    return channels


def _parse_neuron(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"(?P<layer>[^:@]+):(?P<channel>[0-9]+)(?:@(?P<y>[0-9]+),(?P<x>[0-9]+))?", text)
    if match is None:
        raise RequestError(
            f"--neuron {text} should read LAYER:CHANNEL or LAYER:CHANNEL@Y,X, such as blocks.2.0:12@5,7", field="target"
        )
    numbers = {name: int(match[name]) for name in ("channel", "y", "x") if match[name] is not None}
    return {"layer": match["layer"], **numbers}


def _parse_value(text: str) -> Any:
    """JSON (numbers, true, false, null, lists) where the text is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
