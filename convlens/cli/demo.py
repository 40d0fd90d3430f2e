"""scikit-image's own photographs: the demo's pictures, and other views of them for its gallery.

``convlens demo``: the whole way, from a model's name to a report, through a live TorchServe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageEnhance, ImageOps

from convlens import image
from convlens.cli.archive_cache import current_archive, graphs_for
from convlens.cli.console import console, counted, out, step
from convlens.cli.options import MODEL, method_params, wanted_names
from convlens.cli.results import Answer, show_table, write_report
from convlens.client import Client
from convlens.client.auth import TOKEN_VARIABLE
from convlens.client.base import PROBE_PNG
from convlens.errors import ConvLensError, GalleryError, RequestError
from convlens.gallery import Gallery, build_from
from convlens.models import Classifier, load
from convlens.protocol.params import parse_params
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.torchserve import server

# Name of the file in skimage/data -> what it shows.
PHOTOGRAPHS = {
    "chelsea.png": "cat",
    "coffee.png": "espresso",
    "rocket.jpg": "rocket",
    "motorcycle_left.png": "motorcycle",
    "astronaut.png": "astronaut",
}
_MORE = {
    "brick.png": "brick",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "coins.png": "coins",
    "hubble_deep_field.jpg": "stars",
}


def photographs() -> dict[str, Path]:
    """The demo's pictures by file name."""
    return {name: _folder() / name for name in PHOTOGRAPHS}


def gallery_views() -> Iterator[tuple[str, str, Image.Image]]:
    """(id, label, picture) of every view: none is a picture of the demo itself, all differ from it pixel by pixel."""
    for name, label in (PHOTOGRAPHS | _MORE).items():
        picture = image.read(_folder() / name)
        for view, seen in _views(picture).items():
            yield f"{Path(name).stem}-{view}", label, seen


def _views(picture: Image.Image) -> dict[str, Image.Image]:
    width, height = picture.size
    return {
        "mirrored": ImageOps.mirror(picture),
        "left": picture.crop((0, 0, int(width * 0.7), height)),
        "right": picture.crop((int(width * 0.3), 0, width, height)),
        "close": ImageOps.mirror(picture.crop((width // 5, height // 5, width - width // 5, height - height // 5))),
        "dark": ImageEnhance.Brightness(ImageOps.mirror(picture)).enhance(0.6),
    }


def _folder() -> Path:
    try:
        import skimage
    except ImportError as error:
        raise ConvLensError("the demo's photographs come with scikit-image; pip install 'convlens[demo]'") from error
    return Path(skimage.__file__).parent / "data"


NAME = "convlens"
METHODS = "saliency,guided_backprop,occlusion,grad_cam,neighbours"


def demo(
    images: Annotated[list[Path] | None, typer.Argument(help="Pictures; default: scikit-image's photographs.")] = None,
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    url: Annotated[
        str, typer.Option(help=f"Ask this running server instead of starting one; its token in ${TOKEN_VARIABLE}.")
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
            client.predict(PROBE_PNG)


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
