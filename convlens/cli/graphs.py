"""Models and graphs as commands name them: a network or a folder of graphs, and graphs for a network's sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convlens.cli.console import step
from convlens.cli.packing import CACHE
from convlens.errors import RequestError
from convlens.explain import GraphModel
from convlens.models import Classifier, choose_device, load
from convlens.models.manifest import GRAPHS
from convlens.runtime.graphs import Graphs
from convlens.runtime.onnx_ import Providers
from convlens.service.graphs import graphs_beside
from convlens.service.model import Model
from convlens.service.request import Job, Params, jobs


def open_model(name: str, *, device: str) -> Model:
    """``graphs:FOLDER`` as exported graphs alone, every other name as a network."""
    source, _, folder = name.partition(":")
    if source != GRAPHS:
        return load(name, device=device)
    placed = choose_device(device)
    providers: Providers = "cuda" if placed.type == "cuda" else "cpu"
    return GraphModel.open(Path(folder), providers=providers, device_id=placed.index or 0)


def opened_graphs(model: Model, given: Sequence[Path], params: Params) -> Graphs | None:
    """The graphs given for a network's sweeps; without any, those that an incremental sweep cannot do without."""
    if not isinstance(model, Classifier):
        if given:
            raise RequestError(f"{model.source} consists of graphs; put further ones into its folder, not --graphs")
        return None
    paths = list(given) or [_incremental(model, job) for job in jobs(params, ()) if _is_incremental(job)]
    return graphs_beside(model, paths)


def _is_incremental(job: Job) -> bool:
    return job.method == "occlusion" and job.options["strategy"] == "incremental"


def _incremental(classifier: Classifier, job: Job) -> Path:
    from export.bundle import cached_bundle  # on first use: the exporter takes a second to import

    window, stride = job.options["window"], job.options["stride"]
    if not isinstance(window, int):
        raise RequestError("give the graphs of several incremental windows by --graphs", field="options.window")
    with step("exporting an incremental sweep"):
        return cached_bundle(
            classifier, CACHE, kinds=["occlusion"], window=window, stride=stride, strategy="incremental"
        )
