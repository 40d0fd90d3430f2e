"""``convlens archive``: a model, with or without a gallery, as an archive for TorchServe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens import explain
from convlens.cli.console import out, step
from convlens.cli.options import MODEL
from convlens.cli.packing import current_archive
from convlens.gallery import Gallery
from convlens.models import load
from convlens.service.sweeps import graph_scorer
from convlens.serving.model_config import ArchiveOptions


def archive(
    name: Annotated[str, typer.Option(help="The model's name on the server.")] = "convlens",
    model: Annotated[str, MODEL] = "packaged:efficientnet_lite0",
    gallery: Annotated[Path | None, typer.Option(help="Gallery to ship with the model.")] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Graph of `convlens export scores`, to run occlusion sweeps on; faster.")
    ] = None,
    store: Annotated[Path, typer.Option(help="Folder of archives.")] = Path("model_store"),
    version: Annotated[str, typer.Option(help="Version of the archive.")] = "1.0",
    methods: Annotated[str, typer.Option(help="What /explanations answers by itself, comma-separated.")] = "",
    batch_size: Annotated[int, typer.Option(help="Most rows of one forward pass.")] = 8,
    max_batch_delay: Annotated[int, typer.Option(help="Milliseconds a request waits for others.")] = 20,
    response_timeout: Annotated[int, typer.Option(help="Seconds after which TorchServe kills a worker.")] = 120,
) -> None:
    """Build NAME.mar, which TorchServe serves: the model, its gallery, the handler and this library."""
    with step(f"loading {model}"):
        classifier = load(model, device="cpu")
    if gallery is not None:
        Gallery.open(gallery).require_weights(classifier.spec.weights_sha256)
    if scores is not None:
        graph_scorer(scores, classifier)
    defaults = tuple(explain.get(one.strip()).name for one in methods.split(",")) if methods else None
    options = ArchiveOptions(
        batch_size=batch_size,
        max_batch_delay_ms=max_batch_delay,
        response_timeout_s=response_timeout,
        methods=defaults,
    )
    path = current_archive(
        classifier, name=name, store=store, gallery=gallery, scores=scores, version=version, options=options
    )
    out.print(str(path), markup=False, highlight=False, soft_wrap=True)
