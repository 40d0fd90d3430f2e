"""``convlens explore``: explanations in a browser, from a folder of static files that no server need compute for."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from convlens.acceleration import can_export
from convlens.atlas.site_dir import read_atlas, read_records
from convlens.cli.console import print_message, print_result, print_warning, spinner
from convlens.cli.models import without_lattice
from convlens.cli.options import DEFAULT_MODEL, parse_methods, parse_names
from convlens.cli.outputs import require_movable
from convlens.cli.photographs import CREDITS, PHOTOGRAPHS, photographs
from convlens.errors import ConvLensError, RequestError
from convlens.explorer.atlas_files import SiteAtlas
from convlens.explorer.browser_runtime import RUNTIME
from convlens.explorer.graphs import NEEDED, is_lattice
from convlens.explorer.server import serve as serve_site
from convlens.explorer.site import Sample, require_replaceable, server_origin, write_site
from convlens.models import Classifier, load
from convlens.types import Step

_NONE = "none"


def explore(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Model name, such as torchvision:resnet50; see `convlens models`."),
    ] = DEFAULT_MODEL,
    methods: Annotated[
        list[str],
        typer.Option(
            help="Methods whose graphs the page gets, comma-separated, `all`, or `none` where a server computes; may "
            "be repeated."
        ),
    ] = ["all"],  # noqa: B006 - typer's way; never changed
    gallery: Annotated[
        Path | None, typer.Option(help="Gallery to find neighbours in; copied into the site with its thumbnails.")
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(
            metavar="ATLAS",
            help="Folder that `convlens atlas` wrote; copied into the site, where an image's strongest units lead to "
            "their pages.",
        ),
    ] = None,
    server: Annotated[
        str,
        typer.Option(help="Address of a ConvLens server that the page may ask as well; / for the one that serves it."),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write the site into, for any static host, instead of serving."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a site that an earlier run wrote.")] = False,
    serve: Annotated[
        Path | None, typer.Option(metavar="SITE", help="Serve a site that was written before, as it is.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 is any free one.")] = 0,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Explain images in the browser: nothing is uploaded, and the page works offline. Ends with Ctrl-C."""
    if serve is not None:
        if gallery or atlas or server or output:
            raise RequestError("--serve shows a site as it is; leave --gallery, --atlas, --server and --output out")
        _serve(serve, port=port, open_page=open_page)
        return
    server_origin(server)  # before the model is loaded, for an early error
    if output is not None:
        require_movable(output)
        require_replaceable(output, overwrite=overwrite)
    opened = _open_atlas(atlas)
    RUNTIME.find()
    names = [] if parse_names(methods) == [_NONE] else _exportable(methods)
    with spinner(f"loading {model}"):
        classifier = load(model, device="cpu")
    names = without_lattice(names, classifier, asked=parse_names(methods))
    if output is not None:
        write_explorer(
            classifier, output, methods=names, gallery=gallery, atlas=opened, server=server, overwrite=overwrite
        )
        print_result(f"site: {output}; open it by `convlens explore --serve {output}`")
        return
    with tempfile.TemporaryDirectory(prefix="convlens-explorer-") as folder:
        site = Path(folder) / "site"
        write_explorer(classifier, site, methods=names, gallery=gallery, atlas=opened, server=server)
        _serve(site, port=port, open_page=open_page)


def write_explorer(
    classifier: Classifier,
    folder: Path,
    *,
    methods: Sequence[str],
    gallery: Path | None = None,
    atlas: SiteAtlas | None = None,
    server: str = "",
    overwrite: bool = False,
) -> None:
    """Write the site with the samples, and show the stages; raises as ``write_site``."""
    if (methods or atlas) and not can_export():
        raise RequestError("the page's graphs are exported by onnx; run `pip install 'convlens[onnx]'`")
    with spinner(f"writing the explorer of {classifier.spec.name}") as update:

        def show(step: Step) -> None:
            update(f"writing the explorer of {classifier.spec.name}: {step.stage}")

        write_site(
            classifier,
            folder,
            runtime=RUNTIME.find(),
            methods=methods,
            samples=_samples(),
            gallery=gallery,
            atlas=atlas,
            server=server,
            overwrite=overwrite,
            on_step=show,
        )


def page_methods(classifier: Classifier) -> list[str]:
    """All methods that a page computes of this network, less deconvnet where its map would be one lattice."""
    return [name for name in NEEDED if name != "deconvnet" or not is_lattice(classifier)]


def _exportable(values: Sequence[str]) -> list[str]:
    """The methods of an option's values that a page computes; RequestError for one named that only a server does."""
    names = parse_methods(values)
    for name in parse_names(values):
        if name in names and name not in NEEDED:
            raise RequestError(
                f"{name} is not computed in a page; a server does that, named by --server. A page computes: "
                f"{', '.join(sorted(NEEDED))}",
                field="methods",
            )
    return [name for name in names if name in NEEDED]


def _open_atlas(folder: Path | None) -> SiteAtlas | None:
    """RequestError for a folder without a finished atlas."""
    return None if folder is None else SiteAtlas(folder, read_atlas(folder), read_records(folder))


def _samples() -> list[Sample]:
    try:
        paths = photographs()
    except ConvLensError as error:
        print_warning(f"the page has no samples: {error.message}")
        return []
    return [Sample(path, PHOTOGRAPHS[name], CREDITS[name]) for name, path in paths.items()]


def _serve(site: Path, *, port: int, open_page: bool) -> None:
    def ready(url: str) -> None:
        print_result(f"{url} shows the explorer; stop with Ctrl-C")
        if open_page:
            webbrowser.open(url)

    serve_site(site, port=port, on_ready=ready)
    print_message("stopped")
