"""``convlens explain``: images in, a folder with arrays, overlays and a report out; no server."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from convlens import image
from convlens.cli.console import print_error, print_result, print_warning, progress_bar, spinner
from convlens.cli.interrupts import stoppable
from convlens.cli.models import accelerated, open_model, open_sweep_graphs, wants_sweeps, without_lattice
from convlens.cli.options import (
    DEFAULT_MODEL,
    AccelerateOption,
    DeviceOption,
    EvaluationOption,
    MethodSettings,
    ModelOption,
    NeuronOption,
    PrecisionOption,
    ReplacedFolder,
    SingleFileOption,
    TargetOption,
    TopKOption,
    TrueClassesOption,
    method_params,
    parse_methods,
    parse_names,
    recommended,
    target_param,
)
from convlens.cli.results import REPORT, ImageResult, require_results_folder, show_table, write_results
from convlens.engine.engine import Engine, EngineOptions
from convlens.errors import ConvLensError
from convlens.evaluation.labels import true_classes
from convlens.features.image_list import image_files
from convlens.gallery import Gallery
from convlens.models import Classifier
from convlens.protocol.params import Params, parse_params
from convlens.protocol.requests import Request
from convlens.report import TrueClass
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Reply, Step

BATCH = 4
CLASS_METHODS = "saliency,guided_backprop,occlusion"
NEURON_METHODS = "saliency,guided_backprop,deconvnet"  # occlusion explains classes only


def explain(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    output: ReplacedFolder,
    methods: Annotated[
        list[str],
        typer.Option(
            help="Methods, comma-separated, `all`, or `recommended` with --evaluation; may be repeated. "
            f"Default: {CLASS_METHODS}; for a neuron {NEURON_METHODS}; with --gallery neighbours too."
        ),
    ] = [],  # noqa: B006 - typer's way; never changed
    evaluation: EvaluationOption = None,
    target: TargetOption = "",
    neuron: NeuronOption = "",
    labels: TrueClassesOption = "",
    model: ModelOption = DEFAULT_MODEL,
    gallery: Annotated[
        Path | None, typer.Option(help="Gallery to search for nearest neighbours, which `all` then includes.")
    ] = None,
    graphs: Annotated[
        list[Path],
        typer.Option(help="Graphs of `convlens export` (files or folders) to run occlusion sweeps on; faster."),
    ] = [],  # noqa: B006
    option: MethodSettings = [],  # noqa: B006
    topk: TopKOption = 5,
    max_passes: Annotated[
        float | None,
        typer.Option(
            min=1, help="Refuse what needs more forward passes an image than this, as servers do. Default: no limit."
        ),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    accelerate: AccelerateOption = True,
    single_file: SingleFileOption = False,
) -> None:
    """Explain images without a server: arrays, overlays, predictions.csv and an HTML report."""
    keep_freed_memory()
    # Its tracebacks are for a server's log; here each error is said in a sentence of its own.
    logging.getLogger("convlens.engine").addHandler(logging.NullHandler())
    require_results_folder(output)
    recommendation = recommended(methods, evaluation)
    names = parse_methods(
        methods or _default_methods(neuron, gallery), recommendation, with_gallery=gallery is not None
    )
    evaluated = recommendation.options_not_default() if recommendation else {}

    def parsed(names: Sequence[str]) -> Params:
        return parse_params(
            {
                "methods": method_params(names, option, evaluated),
                "topk": topk,
                "output": ["array", "overlay", "heatmap"],
                **target_param(target, neuron),
            }
        )

    parsed(names)  # what is wrong with them is said before the model is loaded
    files = list(_image_files(images))
    with spinner(f"loading {model}"):
        network = open_model(model, device=device, precision=precision)
        opened = Gallery.open(gallery) if gallery else None
    if recommendation is not None:
        recommendation.require_weights(network.spec.weights_sha256)
    names = without_lattice(names, network, asked=parse_names(methods))
    params = parsed(names)
    if isinstance(network, Classifier):
        network = accelerated(network, wanted=accelerate and not graphs and wants_sweeps(params, "full"))
    options = EngineOptions(shows_details=True, max_cost=max_passes or math.inf)
    truths = _true_classes(files, labels, network.spec.labels)
    engine = Engine(network, gallery=opened, graphs=open_sweep_graphs(network, graphs, params), options=options)
    results: list[ImageResult] = []
    failures: list[tuple[Path, ConvLensError]] = []
    with stoppable() as stop:
        for path, result in _explain_all(engine, [path for _, path in files], params):
            if isinstance(result, ConvLensError):
                failures.append((path, result))
            else:
                results.append(replace(result, true_class=truths.get(path)))
    if stop.code:
        print_warning(
            f"interrupted: {len(results)} of {len(files)} images are explained{' and kept' if results else ''}"
        )
    if results:
        write_results(output, results, model=network.spec.name, single_file=single_file)
        show_table(results)
        print_result(f"report: {output / REPORT}")
    for path, error in failures:
        print_error(f"not explained: {path}: {error.message}")
    missing = list(_left_out(results, names))
    for line in missing:
        print_warning(line)
    stop.leave()
    if failures or (methods and missing):
        raise typer.Exit(1)


def _left_out(results: Sequence[ImageResult], names: Sequence[str]) -> Iterator[str]:
    """A line for each method that the model could not do, with the reason, and with the images where not for all."""
    for name in names:
        without = [result for result in results if all(item.id != name for item in result.reply.explanations)]
        reasons = [line for result in without for line in result.reply.warnings if line.startswith(f"{name} is left")]
        for reason in dict.fromkeys(reasons):
            images = [result.name for result in without if reason in result.reply.warnings]
            yield reason if len(images) == len(results) else f"{', '.join(images[:5])}: {reason}"


def _image_files(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """The files themselves by their names, and those of each folder by their paths in it, in that order."""
    for path in paths:
        if path.is_dir():
            yield from image_files(path).items()
        else:
            yield path.name, path


def _true_classes(files: Sequence[tuple[str, Path]], source: str, labels: tuple[str, ...]) -> dict[Path, TrueClass]:
    """The true class of each file; empty without a source."""
    if not source:
        return {}
    if source == "folder":
        # Of an image that is named itself, or lies in no folder below the one that is named, it is the folder it is in.
        ids = {path: f"{path.absolute().parent.name}/{path.name}" for _, path in files}
        index_of = true_classes(list(ids.values()), "folder", labels)
    else:
        ids = {path: id for id, path in files}
        index_of = true_classes(list(ids.values()), Path(source), labels)
    return {path: TrueClass(index_of[id], labels[index_of[id]]) for path, id in ids.items()}


def _default_methods(neuron: str, gallery: Path | None) -> list[str]:
    return [NEURON_METHODS if neuron else CLASS_METHODS, *(["neighbours"] if gallery else [])]


def _explain_all(
    engine: Engine, paths: Sequence[Path], params: Params
) -> Iterator[tuple[Path, ImageResult | ConvLensError]]:
    """Each path with its result or error, as soon as its batch is done."""
    remaining = iter(paths)
    with progress_bar("explaining", len(paths)) as bar:
        while batch := list(islice(remaining, BATCH)):
            names = ", ".join(path.name for path in batch[:2])

            def show(step: Step, names: str = names) -> None:
                done = f" {step.done}/{step.total}" if step.total else ""
                bar.update(bar.task_ids[0], description=f"{names}: {step.stage}{done}")

            yield from _explain_batch(engine, batch, params, show)
            bar.advance(bar.task_ids[0], len(batch))


def _explain_batch(
    engine: Engine, paths: Sequence[Path], params: Params, on_step: Callable[[Step], None]
) -> Iterator[tuple[Path, ImageResult | ConvLensError]]:
    """Each path with its result or error; an image that cannot be read does not stop the others."""
    requests: dict[Path, Request] = {}
    for path in paths:
        try:
            requests[path] = Request(image.read_channels(path, engine.model.spec.channels), params)
        except ConvLensError as error:
            yield path, error
    replies = engine.run(list(requests.values()), on_step=on_step)
    for (path, request), reply in zip(requests.items(), replies, strict=True):
        if isinstance(reply, Reply):
            view_HWC = image.prepare(request.image, engine.model.spec).display_HWC
            yield path, ImageResult(path.name, image.encode_png(view_HWC), reply)
        else:
            yield path, reply
