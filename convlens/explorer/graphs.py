"""The exported graphs of a site: which methods need which, and what is missing where a network has none."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from convlens.acceleration import cached_features, cached_graphs
from convlens.errors import UnsupportedModelError
from convlens.explain import ForwardPass, get, run
from convlens.explain.methods.deconvnet import depends_on_image
from convlens.instrument import tapped
from convlens.models import Classifier
from convlens.runtime.graph_contract import CAM, LOGITS, GraphContract, Kind
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.types import Floats, Step, no_op

Graph = Literal["scores", "embedding", "saliency", "guided_backprop", "deconvnet", "cam", "features"]
"""What a page calls a graph; logits may come from the graph of embeddings, which is one file less to load."""

# Method -> the graphs that a page computes it from; the logits' are always there. A page computes no others.
NEEDED: Mapping[str, tuple[Graph, ...]] = {
    "saliency": ("saliency",),
    "input_x_gradient": ("saliency",),
    "integrated_gradients": ("saliency",),
    "smoothgrad": ("saliency",),
    "guided_backprop": ("guided_backprop",),
    "deconvnet": ("deconvnet",),
    "grad_cam": (CAM,),
    "grad_cam_plus_plus": (CAM,),
    "hires_cam": (CAM,),
    "layer_cam": (CAM,),
    "guided_grad_cam": ("guided_backprop", CAM),
    "occlusion": ("scores",),
    "neighbours": ("embedding",),
}
FEATURES: Literal["features"] = "features"
_TOLERANCE = 1e-3  # of logits and features: far above rounding, far below another network


@dataclass(frozen=True)
class SiteGraph:
    """``file`` is relative to the site."""

    file: str
    bytes: int
    contract: GraphContract


@dataclass(frozen=True)
class SiteGraphs:
    """The graphs of a site, and for those left out the reason, in words."""

    graphs: Mapping[Graph, SiteGraph] = field(default_factory=dict)
    missing: Mapping[Graph, str] = field(default_factory=dict)


def export_graphs(
    classifier: Classifier,
    methods: Sequence[str],
    site: Path,
    *,
    layers: Sequence[str] = (),
    on_step: Callable[[Step], None] = no_op,
) -> SiteGraphs:
    """Write the graphs that these methods need, with them that of the logits, and that of these layers' outputs.

    They are written into ``graphs/``, and come from the cache, or are exported where it has none or where the kept one
    no longer gives the network's numbers. A graph that is not defined for the network is left out, with the reason:
    guided backprop's without ReLUs, say. Raises as ``acceleration.cached_graphs`` and ``cached_features``.
    """
    if not methods and not layers:
        return SiteGraphs()
    (site / "graphs").mkdir()
    exporter = _Exporter(classifier, on_step)
    graphs: dict[Graph, SiteGraph] = {}
    missing: dict[Graph, str] = {}
    if layers:
        graphs["features"] = exporter.write_features(layers, site)
    if not methods:
        return SiteGraphs(graphs)
    scores: Graph = "embedding" if classifier.spec.embedding_layer else "scores"
    graphs[scores] = graphs["scores"] = exporter.write(scores, site)
    for graph in _others(methods):
        try:
            graphs[graph] = exporter.write(graph, site)
        except _LeftOutError:
            missing[graph] = _why_undefined(classifier, graph)
    return SiteGraphs(graphs, missing)


def is_lattice(classifier: Classifier) -> bool:
    """Whether deconvnet would draw the same map for every image."""
    return not depends_on_image(classifier)


class _LeftOutError(Exception):
    """The exporter does not define this graph for the network."""


def _others(methods: Collection[str]) -> list[Graph]:
    """The graphs beside that of the logits, each once, in the order of the methods' table."""
    needed = [graph for name, graphs in NEEDED.items() if name in methods for graph in graphs]
    return [graph for graph in dict.fromkeys(needed) if graph not in ("scores", "embedding")]


class _Exporter:
    def __init__(self, classifier: Classifier, on_step: Callable[[Step], None]) -> None:
        spec = classifier.spec
        self._classifier, self._on_step = classifier, on_step
        self._x_NCHW = np.random.default_rng(0).standard_normal((1, spec.channels, *spec.input_size), dtype=np.float32)
        self._logits_NK = ForwardPass(classifier, torch.from_numpy(self._x_NCHW)).logits_NK

    def write(self, kind: Kind, site: Path) -> SiteGraph:
        """Raises _LeftOutError where the exporter does not define the graph for the network."""
        if kind == CAM and not self._classifier.spec.gradcam_layer:
            raise _LeftOutError
        kept = cached_graphs(self._classifier, kinds=(kind,), on_step=self._on_step)

        def export_again(folder: Path) -> None:
            from export.bundle import bundle  # on first use: the exporter takes a second to import

            bundle(self._classifier, folder, kinds=(kind,), on_step=self._on_step)

        return self._write(kind, kept, site, {LOGITS: self._logits_NK}, export_again)

    def write_features(self, layers: Sequence[str], site: Path) -> SiteGraph:
        """The graph of these layers' outputs."""
        kept = cached_features(self._classifier, layers, on_step=self._on_step)
        with torch.inference_mode(), tapped(self._classifier.module, outputs=layers) as tap:
            tap.module(torch.from_numpy(self._x_NCHW))
        expected = {layer: tap.outputs[layer].numpy() for layer in layers}

        def export_again(folder: Path) -> None:
            from export.exporter import export  # on first use, as above

            folder.mkdir()
            export(self._classifier, FEATURES, folder / f"{FEATURES}.onnx", layers=layers, on_step=self._on_step)

        return self._write(FEATURES, kept, site, expected, export_again)

    def _write(
        self,
        kind: Kind,
        kept: Path,
        site: Path,
        expected: Mapping[str, Floats],
        export_again: Callable[[Path], None],
    ) -> SiteGraph:
        file = f"graphs/{kind}.onnx"
        contract = _copy(kept / f"{kind}.onnx", site / file)
        if not self._agrees(site / file, expected):
            # No key of the cache sees an edited forward pass: the weights are the same.
            with tempfile.TemporaryDirectory(prefix="convlens-graphs-") as folder:
                export_again(Path(folder) / kind)
                contract = _copy(Path(folder) / kind / f"{kind}.onnx", site / file)
        return SiteGraph(file, (site / file).stat().st_size, contract)

    def _agrees(self, graph: Path, expected: Mapping[str, Floats]) -> bool:
        """Whether its outputs are what the network gives now."""
        runtime = OnnxRuntime(graph, providers="cpu", threads=1)
        rows = runtime.contract.batch or 1
        targets = [np.zeros(rows, np.int64) for _ in runtime.contract.inputs[1:]]
        outputs = runtime.run(self._x_NCHW.repeat(rows, axis=0), *targets)
        return all(
            bool(np.abs(outputs[name][:1] - values).max() <= _TOLERANCE * np.abs(values).max())
            for name, values in expected.items()
        )


def _copy(graph: Path, place: Path) -> GraphContract:
    """The contract of the graph, which then lies at ``place`` as well; _LeftOutError where there is none."""
    place.unlink(missing_ok=True)
    if not graph.exists():
        raise _LeftOutError
    shutil.copyfile(graph, place)
    return OnnxRuntime(place, providers="cpu", threads=1).contract


def _why_undefined(classifier: Classifier, graph: Graph) -> str:
    """The network's own refusal of the method, where it has one."""
    method = "grad_cam" if graph == CAM else graph
    size = (1, classifier.spec.channels, *classifier.spec.input_size)
    try:
        run(method, ForwardPass(classifier, torch.zeros(size)), [0])
    except UnsupportedModelError as error:
        return error.message
    return f"the graph of {get(method).title} cannot be exported from this network"
