"""``convlens archive``: a model, with or without a gallery, as an archive for TorchServe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from convlens.cli.archive_cache import Runtime, archive_graphs, current_archive
from convlens.cli.console import print_result, print_warning, spinner
from convlens.cli.models import without_lattice
from convlens.cli.options import (
    DEFAULT_MODEL,
    PRECISION,
    EvaluationOption,
    ModelOption,
    StoreOption,
    parse_methods,
    parse_names,
    recommended,
)
from convlens.engine.backend import graphs_beside
from convlens.errors import RequestError
from convlens.explain.onnx_forward import GraphModel
from convlens.gallery import Gallery
from convlens.models import Classifier, load
from convlens.torchserve.archive import SWEEP_SUFFIX
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.types import ArithmeticPrecision
from convlens.utils.files import require_writable


def archive(
    name: Annotated[str, typer.Option(help="Name of the model on the server.")] = "convlens",
    model: ModelOption = DEFAULT_MODEL,
    gallery: Annotated[Path | None, typer.Option(help="Gallery to pack with the model.")] = None,
    runtime: Annotated[
        Runtime, typer.Option(help="torch: the network, and graphs for its sweeps; onnx: exported graphs only.")
    ] = "torch",
    graphs: Annotated[
        str, typer.Option(help="Folder written by `convlens export`; auto: export now; none: no graphs (torch only).")
    ] = "auto",
    store: StoreOption = Path("model_store"),
    version: Annotated[str, typer.Option(help="Version of the archive.")] = "1.0",
    methods: Annotated[
        list[str],
        typer.Option(
            help="Methods of /explanations by default, comma-separated, or `recommended` with --evaluation; may be "
            "repeated. Default: those that apply."
        ),
    ] = [],  # noqa: B006 - typer's way; never changed
    evaluation: EvaluationOption = None,
    sweeps: Annotated[
        Literal["here", "apart"],
        typer.Option(
            help="here: one entry; apart: heavy requests get an entry NAME_sweep, so that predictions never wait."
        ),
    ] = "here",
    # Not PrecisionOption, which is for what this process computes.
    precision: Annotated[ArithmeticPrecision, typer.Option(help=PRECISION)] = "float32",
    batch_size: Annotated[int, typer.Option(help="Maximum number of rows in one forward pass.")] = 8,
    max_batch_delay: Annotated[int, typer.Option(help="Milliseconds that a request waits for others.")] = 20,
    response_timeout: Annotated[int, typer.Option(help="Seconds after which TorchServe kills a busy worker.")] = 120,
) -> None:
    """Build NAME.mar for TorchServe: the model, its gallery, the handler and this library."""
    require_writable(store)
    recommendation = recommended(methods, evaluation)
    names = parse_methods(methods, recommendation, with_gallery=gallery is not None)
    with spinner(f"loading {model}"):
        classifier = load(model, device="cpu")
    if recommendation is not None:
        recommendation.require_weights(classifier.spec.weights_sha256)
        for method, values in recommendation.options_not_default().items():
            settings = ", ".join(f"{option}={value}" for option, value in values.items())
            print_warning(f"{method} was evaluated with {settings}; the archive's defaults are the method's own")
    if gallery is not None:
        Gallery.open(gallery).require_weights(classifier.spec.weights_sha256)
    defaults = tuple(without_lattice(names, classifier, asked=parse_names(methods))) or None
    folder = _graph_folder(classifier, runtime, graphs)
    options = ArchiveOptions(
        batch_size=batch_size,
        max_batch_delay_ms=max_batch_delay,
        response_timeout_s=response_timeout,
        methods=defaults,
        sweeps_at=name + SWEEP_SUFFIX if sweeps == "apart" else "",
        precision=precision,
        section={"evaluation": recommendation.evidence} if recommendation else {},
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
    print_result(str(path))


def _graph_folder(classifier: Classifier, runtime: Runtime, graphs: str) -> Path | None:
    """The folder of graphs to pack. An existing folder is opened once to see that it belongs to the model."""
    if graphs == "none":
        if runtime == "onnx":
            raise RequestError("an archive of --runtime onnx consists of graphs; leave --graphs none out")
        return None
    if graphs == "auto":
        return archive_graphs(classifier, runtime)
    folder = Path(graphs)
    if not folder.is_dir():
        raise RequestError(f"--graphs {graphs} is no folder; write one with `convlens export bundle`")
    if runtime == "torch":
        graphs_beside(classifier, [folder])
    else:
        _require_weights(GraphModel.open(folder, providers="cpu"), classifier)
    return folder


def _require_weights(model: GraphModel, classifier: Classifier) -> None:
    if model.spec.weights_sha256 != classifier.spec.weights_sha256:
        raise RequestError(
            f"the graphs were exported from weights {model.spec.weights_sha256} of {model.spec.name}, but "
            f"{classifier.source} has {classifier.spec.weights_sha256}; name their model by --model, or export again"
        )
