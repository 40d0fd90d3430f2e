"""``convlens demo``: the whole way, from a model's name to a report, through a live TorchServe."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from convlens import image
from convlens.cli.console import console, counted, out, step
from convlens.cli.options import MODEL, method_params, wanted_names
from convlens.cli.output import Answer, write_report
from convlens.cli.packing import current_archive, graphs_for
from convlens.cli.photographs import gallery_views, photographs
from convlens.cli.table import show_table
from convlens.client import Client
from convlens.client.pictures import GREY
from convlens.client.tokens import VARIABLE
from convlens.errors import GalleryError, RequestError
from convlens.gallery import Gallery, build_from
from convlens.models import Classifier, load
from convlens.runtime.torch_ import keep_freed_memory
from convlens.service.request import parse_params
from convlens.serving import server

NAME = "convlens"
METHODS = "saliency,guided_backprop,occlusion,grad_cam,neighbours"


def demo(
    images: Annotated[list[Path] | None, typer.Argument(help="Pictures; default: scikit-image's photographs.")] = None,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    url: Annotated[
        str, typer.Option(help=f"Ask this running server instead of starting one; its token in ${VARIABLE}.")
    ] = "",
    name: Annotated[str, typer.Option(help="The model's name on that server.")] = NAME,
    methods: Annotated[str, typer.Option(help="Explanations to ask for, comma-separated.")] = METHODS,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("demo"),
    store: Annotated[Path, typer.Option(help="Folder of archives.")] = Path("model_store"),
) -> None:
    """Serve a model on TorchServe, explain pictures over REST, write a report, stop the server."""
    keep_freed_memory()
    paths = list(images or photographs().values())
    for path in paths:
        image.read(path)
    # Of an uncertain answer the probability tells more than the logit: what keeps this class above its rivals.
    settings = ["occlusion.score=probability"] if "occlusion" in wanted_names(methods) else []
    params: dict[str, Any] = {
        "methods": method_params(wanted_names(methods), settings),
        "output": ["array", "overlay", "heatmap"],
    }
    with step(f"loading {model}"):
        classifier = load(model, device="cpu")
    if url:
        with Client(url, model=name) as client:
            answers = _ask(client, paths, classifier, params)
    else:
        with serving(classifier, store=store) as live, client_of(live, NAME) as client:
            answers = _ask(client, paths, classifier, params)
    output.mkdir(parents=True, exist_ok=True)
    report = output / "report.html"
    write_report(report, answers, model=answers[0].reply.model_name if url else classifier.spec.name)
    show_table(answers)
    out.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)


def serving(classifier: Classifier, *, store: Path) -> AbstractContextManager[server.Server]:
    """A live server with the demo's archive: the model and a gallery of other views of the demo's pictures."""
    gallery = gallery_for(classifier)
    archive = current_archive(
        classifier, name=NAME, store=store, gallery=gallery, graphs=graphs_for(classifier, "torch")
    )
    return server.running(archives={NAME: archive}, run_dir=Path(".convlens") / "demo-server", probe=probe, on_step=say)


def say(message: str) -> None:
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def probe(live: server.Server) -> None:
    """A tiny inference: a server that says it is ready has not yet shown that it can answer."""
    for model in live.models:
        with client_of(live, model) as client:
            client.predict(GREY)


def client_of(live: server.Server, model: str) -> Client:
    """A client of one of the server's models, with its token where it asks for one."""
    return Client(live.inference_url, model=model, key_file=live.key_file if live.auth else None)


def gallery_for(classifier: Classifier, folder: Path = Path(".convlens") / "demo-gallery") -> Path:
    """The demo's gallery, built anew where there is none for these weights."""
    try:
        Gallery.open(folder).require_weights(classifier.spec.weights_sha256)
        say(f"{folder} is up to date")
    except GalleryError:
        views = list(gallery_views())
        with counted("gallery", len(views)) as bar:
            build_from(views, folder, classifier, on_step=lambda done, _: bar.update(bar.task_ids[0], completed=done))
    return folder


def _ask(client: Client, paths: Sequence[Path], classifier: Classifier, params: dict[str, Any]) -> list[Answer]:
    answers = []
    with counted("explaining over REST", len(paths)) as bar:
        for path in paths:
            reply = client.explain(path, **params)
            if reply.weights_sha256 != classifier.spec.weights_sha256:
                raise RequestError(f"{client} serves other weights than {classifier.source}; name its model by --model")
            view_HWC = image.prepare(image.read(path), classifier.spec).view_HWC
            answers.append(Answer(path.name, image.encode_png(view_HWC), reply, parse_params(params)))
            bar.advance(bar.task_ids[0])
    return answers
