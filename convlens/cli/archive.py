"""``convlens archive``: a model, with or without a gallery, as an archive for TorchServe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from convlens import explain
from convlens.cli.archive_cache import Runtime, current_archive, graphs_for
from convlens.cli.console import out, step
from convlens.cli.options import MODEL
from convlens.engine.backend import graphs_beside
from convlens.errors import RequestError
from convlens.explain.onnx_forward import GraphModel
from convlens.gallery import Gallery
from convlens.models import Classifier, load
from convlens.torchserve.archive import SWEEP_SUFFIX
from convlens.torchserve.archive_config import ArchiveOptions


def archive(
    name: Annotated[str, typer.Option(help="The model's name on the server.")] = "convlens",
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    gallery: Annotated[Path | None, typer.Option(help="Gallery to ship with the model.")] = None,
    runtime: Annotated[
        Runtime, typer.Option(help="torch: the network, with graphs for its sweeps; onnx: exported graphs alone.")
    ] = "torch",
    graphs: Annotated[
        str, typer.Option(help="Folder of `convlens export`; auto: export them now, none: no graphs (torch only).")
    ] = "auto",
    store: Annotated[Path, typer.Option(help="Folder of archives.")] = Path("model_store"),
    version: Annotated[str, typer.Option(help="Version of the archive.")] = "1.0",
    methods: Annotated[str, typer.Option(help="What /explanations answers by itself, comma-separated.")] = "",
    sweeps: Annotated[
        Literal["here", "apart"],
        typer.Option(help="apart: a second entry NAME_sweep answers what is heavy, so that predictions never wait."),
    ] = "here",
    batch_size: Annotated[int, typer.Option(help="Most rows of one forward pass.")] = 8,
    max_batch_delay: Annotated[int, typer.Option(help="Milliseconds a request waits for others.")] = 20,
    response_timeout: Annotated[int, typer.Option(help="Seconds after which TorchServe kills a worker.")] = 120,
) -> None:
    """Build NAME.mar, which TorchServe serves: the model, its gallery, the handler and this library."""
    with step(f"loading {model}"):
        classifier = load(model, device="cpu")
    if gallery is not None:
        Gallery.open(gallery).require_weights(classifier.spec.weights_sha256)
    folder = _graphs(classifier, runtime, graphs)
    defaults = tuple(explain.get(one.strip()).name for one in methods.split(",")) if methods else None
    options = ArchiveOptions(
        batch_size=batch_size,
        max_batch_delay_ms=max_batch_delay,
        response_timeout_s=response_timeout,
        methods=defaults,
        sweeps_at=name + SWEEP_SUFFIX if sweeps == "apart" else "",
    )
    path = current_archive(
        classifier,
        name=name,
        store=store,
        gallery=gallery,
        graphs=folder,
        runtime=runtime,
        version=version,
        options=options,
    )
    out.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _graphs(classifier: Classifier, runtime: Runtime, asked: str) -> Path | None:
    """The folder of graphs to pack: made now, or as given, opened once to see that it belongs to the model."""
    if asked == "none":
        if runtime == "onnx":
            raise RequestError("an archive of --runtime onnx consists of graphs; leave --graphs none out")
        return None
    if asked == "auto":
        return graphs_for(classifier, runtime)
    folder = Path(asked)
    if not folder.is_dir():
        raise RequestError(f"--graphs {asked} is no folder; write one by `convlens export bundle`")
    if runtime == "torch":
        graphs_beside(classifier, [folder])
    else:
        _require_same(GraphModel.open(folder, providers="cpu"), classifier)
    return folder


def _require_same(model: GraphModel, classifier: Classifier) -> None:
    if model.spec.weights_sha256 != classifier.spec.weights_sha256:
        raise RequestError(
            f"the graphs were exported from weights {model.spec.weights_sha256} of {model.spec.name}, but "
            f"{classifier.source} has {classifier.spec.weights_sha256}; name their model by --model, or export again"
        )
