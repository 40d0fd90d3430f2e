"""``convlens explain``: pictures in, a folder with arrays, overlays and a report out; no server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from convlens import image
from convlens.cli.console import console, counted, out, step
from convlens.cli.models import open_model, opened_graphs
from convlens.cli.options import MODEL, NEURON, asked_target, method_params, wanted_names
from convlens.cli.results import Answer, show_table, write_folder
from convlens.engine.engine import Engine
from convlens.errors import ConvLensError
from convlens.gallery import Gallery
from convlens.gallery.builder import image_files
from convlens.protocol.params import Params, parse_params
from convlens.protocol.requests import Request
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Reply, Step

BATCH = 4
METHODS_OF_CLASSES = "saliency,guided_backprop,occlusion"


def explain(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; replaced when a run of this command made it.")
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="Explanations, comma-separated; or `all`. Default: saliency,guided_backprop,occlusion, of a neuron "
            "saliency,guided_backprop,deconvnet."
        ),
    ] = "",
    target: Annotated[
        str, typer.Option(help="Class to explain: a label or an index. Default: the predicted class.")
    ] = "",
    neuron: Annotated[str, NEURON] = "",
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    gallery: Annotated[Path | None, typer.Option(help="Gallery to look for neighbours in.")] = None,
    graphs: Annotated[
        list[Path], typer.Option(help="Graphs of `convlens export`, files or folders, to run sweeps on; faster.")
    ] = [],  # noqa: B006
    option: Annotated[list[str], typer.Option("--set", help="Option of a method, such as occlusion.window=48.")] = [],  # noqa: B006
    topk: Annotated[int, typer.Option(help="How many classes to list.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Explain pictures without a server: arrays, overlays and one HTML report."""
    keep_freed_memory()
    params = _params(_methods(methods, neuron), option, asked_target(target, neuron), topk)
    paths = list(_pictures(images))
    with step(f"loading {model}"):
        classifier = open_model(model, device=device)
        opened = Gallery.open(gallery) if gallery else None
    beside = opened_graphs(classifier, graphs, params)
    engine = Engine(classifier, gallery=opened, graphs=beside)
    answers, failed = _answer_all(engine, paths, params)
    if answers:
        write_folder(output, answers, model=classifier.spec.name)
        show_table(answers)
        out.print(f"report: {output / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    for path, error in failed:
        console.print(
            f"not explained: {path}: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    if failed:
        raise typer.Exit(1)


def _methods(given: str, neuron: str) -> list[str]:
    """Of a neuron by default what a neuron can be explained by."""
    return wanted_names(given or ("saliency,guided_backprop,deconvnet" if neuron else METHODS_OF_CLASSES))


def _params(methods: Sequence[str], option: Sequence[str], target: dict[str, Any], topk: int) -> Params:
    given: dict[str, Any] = {"methods": method_params(methods, option), "topk": topk}
    return parse_params(given | target | {"output": ["array", "overlay", "heatmap"]})


def _pictures(given: Sequence[Path]) -> Iterator[Path]:
    """The files as they are, and the pictures of the folders, sorted."""
    for path in given:
        if not path.is_dir():
            yield path
            continue
        yield from image_files(path).values()


def _answer_all(
    engine: Engine, paths: Sequence[Path], params: Params
) -> tuple[list[Answer], list[tuple[Path, ConvLensError]]]:
    answers: list[Answer] = []
    failed: list[tuple[Path, ConvLensError]] = []
    waiting = iter(paths)
    with counted("explaining", len(paths)) as bar:
        while chunk := list(islice(waiting, BATCH)):
            first = ", ".join(path.name for path in chunk[:2])

            def tell(step: Step, first: str = first) -> None:
                done = f" {step.done}/{step.total}" if step.total else ""
                bar.update(bar.task_ids[0], description=f"{first}: {step.stage}{done}")

            for path, request, reply in _answer(engine, chunk, params, tell):
                if isinstance(reply, Reply) and request is not None:
                    view_HWC = image.prepare(request.picture, engine.model.spec).view_HWC
                    answers.append(Answer(path.name, image.encode_png(view_HWC), reply, params))
                elif isinstance(reply, ConvLensError):
                    failed.append((path, reply))
            bar.advance(bar.task_ids[0], len(chunk))
    return answers, failed


def _answer(
    engine: Engine, paths: Sequence[Path], params: Params, tell: Callable[[Step], None]
) -> Iterator[tuple[Path, Request | None, Reply | ConvLensError]]:
    """Each path with what became of it; a picture that cannot be read does not hold up the others."""
    requests: dict[Path, Request] = {}
    for path in paths:
        try:
            requests[path] = Request(image.read(path), params)
        except ConvLensError as error:
            yield path, None, error
    replies = engine.run(list(requests.values()), on_step=tell)
    for (path, request), reply in zip(requests.items(), replies, strict=True):
        yield path, request, reply
