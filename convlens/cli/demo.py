"""``convlens demo``: from a model's name to a report, through a live TorchServe, on scikit-image's photographs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageEnhance, ImageOps

from convlens import image
from convlens.cli.archive_cache import archive_graphs, current_archive
from convlens.cli.console import print_message, print_result, print_warning, progress_bar, spinner
from convlens.cli.explore import page_methods, write_explorer
from convlens.cli.interrupts import stoppable
from convlens.cli.models import without_lattice
from convlens.cli.options import DEFAULT_MODEL, ModelOption, StoreOption, method_params, parse_methods, parse_names
from convlens.cli.photographs import OTHERS, other_photographs, photographs
from convlens.cli.results import REPORT, ImageResult, show_table, write_report
from convlens.cli.server_address import ServedModelOption, find_server
from convlens.client import Client
from convlens.client.base import PROBE_PNG
from convlens.errors import ConvLensError, GalleryError, RequestError
from convlens.features.image_list import expand_folders
from convlens.gallery import Gallery, build_from
from convlens.models import Classifier, load
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.torchserve import server
from convlens.utils.files import require_writable

NAME = "convlens"
EXPLORER = "explorer"
METHODS = "saliency,guided_backprop,occlusion,grad_cam,neighbours"
_ABOUT_GALLERY = (
    "The nearest neighbours come from a gallery of {count} other photographs, those that scikit-image and scikit-learn "
    "bring: so few that the nearest is often not alike. Build one of your own with the command convlens gallery build."
)


def demo(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Images, or folders of images. Default: scikit-image's photographs."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    url: Annotated[
        str,
        typer.Option(
            help="Running server to use instead of starting one: its REST address, or the folder it runs in, such as "
            ".convlens/server."
        ),
    ] = "",
    name: ServedModelOption = "",
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="That server's key_file.json with its token. Default: that of a server started here, else "
            "$CONVLENS_TOKEN."
        ),
    ] = None,
    methods: Annotated[list[str], typer.Option(help="Methods, comma-separated; may be repeated.")] = [METHODS],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("demo"),
    store: StoreOption = Path("model_store"),
    explorer: Annotated[bool, typer.Option(help="Write the explorer as well, beside the report.")] = True,
) -> None:
    """Serve a model on TorchServe, explain images over REST, write a report, stop the server, write the explorer."""
    keep_freed_memory()
    require_writable(output)
    if not url:
        require_writable(store)
    paths = list(expand_folders(images or photographs().values()))
    asked = find_server(url, model=name, key_file=key_file) if url else None
    for path in paths:
        image.read(path)  # before the server is started, for an early error
    # Its own server has a gallery; what another one has is not known.
    names = parse_methods(methods, with_gallery=not url)
    with spinner(f"loading {model}"):
        classifier = load(model, device="cpu")
    names = without_lattice(names, classifier, asked=parse_names(methods))
    # Where the network is unsure, the probability tells more than the logit: what keeps this class above its rivals.
    settings = ["occlusion.score=probability"] if "occlusion" in names else []
    params: dict[str, Any] = {"methods": method_params(names, settings), "output": ["array", "overlay", "heatmap"]}
    results: list[ImageResult] = []
    with stoppable() as stop:
        if asked is not None:
            with Client(asked.rest, model=asked.model, key_file=asked.key_file) as client:
                _explain_all(client, paths, classifier, params, results)
        else:
            with _serve(classifier, store=store) as live, client_of(live, NAME) as client:
                _explain_all(client, paths, classifier, params, results)
    if stop.code:
        print_warning(f"interrupted: {len(results)} of {len(paths)} images are explained")
        if not results:
            stop.leave()
    output.mkdir(parents=True, exist_ok=True)
    report = output / REPORT
    # What another server's gallery holds is not known here.
    notes = [] if url or "neighbours" not in names else [_ABOUT_GALLERY.format(count=len(OTHERS))]
    write_report(report, results, model=results[0].reply.model_name if asked else classifier.spec.name, notes=notes)
    show_table(results)
    print_result(f"report: {report}")
    stop.leave()
    if explorer:
        _write_explorer(classifier, output / EXPLORER)


def demo_archive(classifier: Classifier, store: Path) -> Path:
    """The archive that ``demo`` and ``serve`` use: the model, its sweeps' graphs, and the demo's gallery."""
    gallery = demo_gallery(classifier)
    graphs = archive_graphs(classifier, "torch")
    return current_archive(classifier, name=NAME, store=store, gallery=gallery, graphs=graphs)


def demo_gallery(classifier: Classifier, folder: Path = Path(".convlens") / "demo-gallery") -> Path:
    """The demo's gallery of photographs that it does not explain, built where there is none for these weights."""
    if _is_current(folder, classifier):
        print_message(f"{folder} is up to date")
        return folder
    with progress_bar("gallery", len(OTHERS)) as bar:
        others = list(other_photographs())
        build_from(others, folder, classifier, on_step=lambda done, _: bar.update(bar.task_ids[0], completed=done))
    return folder


def _is_current(folder: Path, classifier: Classifier) -> bool:
    """Whether the folder holds a gallery of today's photographs by these weights."""
    try:
        gallery = Gallery.open(folder)
        gallery.require_weights(classifier.spec.weights_sha256)
    except GalleryError:
        return False
    return [entry.id for entry in gallery.entries] == list(OTHERS)


def require_inference(live: server.Server) -> None:
    """A tiny inference by each model: a server that reports that it is ready has not yet shown that it can answer."""
    for model in live.models:
        with client_of(live, model) as client:
            client.predict(PROBE_PNG)


def client_of(live: server.Server, model: str) -> Client:
    """A client of one of the server's models, with its token if the server has one."""
    return Client(live.inference_url, model=model, key_file=live.key_file if live.auth else None)


def _write_explorer(classifier: Classifier, folder: Path) -> None:
    """The explorer with the demo's gallery; where it cannot be written, a line says why."""
    try:
        methods = page_methods(classifier)
        write_explorer(classifier, folder, methods=methods, gallery=demo_gallery(classifier), overwrite=True)
    except ConvLensError as error:
        print_warning(f"no explorer: {error.message}")
        return
    print_result(f"explorer: {folder}; open it by `.venv/bin/convlens explore --serve {folder}`")


def _serve(classifier: Classifier, *, store: Path) -> AbstractContextManager[server.Server]:
    return server.running(
        archives={NAME: demo_archive(classifier, store)},
        run_dir=Path(".convlens") / "demo-server",
        probe=require_inference,
        on_step=print_message,
    )


def _explain_all(
    client: Client, paths: Sequence[Path], classifier: Classifier, params: dict[str, Any], results: list[ImageResult]
) -> None:
    """Append each image's result: those that are there stay when this is interrupted."""
    with progress_bar("explaining over REST", len(paths)) as bar:
        for path in paths:
            reply = client.explain(path, **params)
            if reply.weights_sha256 != classifier.spec.weights_sha256:
                raise RequestError(f"{client} serves other weights than {classifier.source}; name its model by --model")
            view_HWC = image.prepare(image.read_channels(path, classifier.spec.channels), classifier.spec).display_HWC
            results.append(ImageResult(path.name, image.encode_png(view_HWC), reply))
            bar.advance(bar.task_ids[0])


def views(photograph: Image.Image) -> dict[str, Image.Image]:
    """Views of a photograph that differ from it pixel by pixel: crops, mirrored, darker."""
    width, height = photograph.size
    middle = photograph.crop((width // 5, height // 5, width - width // 5, height - height // 5))
    return {
        "mirrored": ImageOps.mirror(photograph),
        "left": photograph.crop((0, 0, int(width * 0.7), height)),
        "right": photograph.crop((int(width * 0.3), 0, width, height)),
        "close": ImageOps.mirror(middle),
        "dark": ImageEnhance.Brightness(ImageOps.mirror(photograph)).enhance(0.6),
    }
