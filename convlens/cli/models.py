"""Models and graphs as commands name them: a network or a folder of graphs, and graphs for a network's sweeps.

``convlens models``: which names there are, or what is known of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from convlens.cli.archive_cache import CACHE
from convlens.cli.console import out, step
from convlens.engine.backend import Model, graphs_beside
from convlens.engine.method_calls import MethodCall, method_calls
from convlens.errors import RequestError
from convlens.explain import GraphModel
from convlens.models import Classifier, choose_device, listing, load
from convlens.models.manifest import GRAPHS
from convlens.models.sources import source_names
from convlens.protocol.params import Params
from convlens.runtime.graph_set import GraphSet
from convlens.runtime.onnx_runtime import Providers


def open_model(name: str, *, device: str) -> Model:
    """``graphs:FOLDER`` as exported graphs alone, every other name as a network."""
    source, _, folder = name.partition(":")
    if source != GRAPHS:
        return load(name, device=device)
    placed = choose_device(device)
    providers: Providers = "cuda" if placed.type == "cuda" else "cpu"
    return GraphModel.open(Path(folder), providers=providers, device_id=placed.index or 0)


def opened_graphs(model: Model, given: Sequence[Path], params: Params) -> GraphSet | None:
    """The graphs given for a network's sweeps; without any, those that an incremental sweep cannot do without."""
    if not isinstance(model, Classifier):
        if given:
            raise RequestError(f"{model.source} consists of graphs; put further ones into its folder, not --graphs")
        return None
    paths = list(given) or [_incremental(model, job) for job in method_calls(params, ()) if _is_incremental(job)]
    return graphs_beside(model, paths)


def _is_incremental(job: MethodCall) -> bool:
    return job.method.name == "occlusion" and job.options["strategy"] == "incremental"


def _incremental(classifier: Classifier, job: MethodCall) -> Path:
    from export.bundle import cached_bundle  # on first use: the exporter takes a second to import

    window, stride = job.options["window"], job.options["stride"]
    if not isinstance(window, int):
        raise RequestError("give the graphs of several incremental windows by --graphs", field="options.window")
    with step("exporting an incremental sweep"):
        return cached_bundle(
            classifier, CACHE, kinds=["occlusion"], window=window, stride=stride, strategy="incremental"
        )


def models(
    name: Annotated[str, typer.Argument(help="A model's full name, to show its spec; or a source, such as timm.")] = "",
) -> None:
    """List the models by name, or show the spec of one."""
    if not name or name in source_names():
        for known in listing(name or None):
            note = "" if known.weights_at_hand else "  (weights are downloaded)"
            out.print(f"{known.name}{note}", markup=False, highlight=False, soft_wrap=True)
        return
    with step(f"loading {name}"):
        spec = load(name, device="cpu").spec
    for key, value in asdict(spec).items():
        shown = f"{len(value)} ({', '.join(value[:3])}, …)" if key == "labels" else value
        out.print(f"{key:18} {shown}", markup=False, highlight=False, soft_wrap=True)
