"""The exported graphs of a site: which methods need which, and what is missing where a network has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from convlens.acceleration import cached_graphs
from convlens.errors import ModelError, UnsupportedModelError
from convlens.explain import ForwardPass, get, run
from convlens.explain.methods.deconvnet import depends_on_image
from convlens.models import Classifier
from convlens.runtime.graph_contract import CAM, LOGITS, GraphContract, Kind
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.types import Step, no_op

Graph = Literal["scores", "embedding", "saliency", "guided_backprop", "deconvnet", "cam"]
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
_TOLERANCE = 1e-3  # of logits: far above rounding, far below another network


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
    classifier: Classifier, methods: Sequence[str], site: Path, *, on_step: Callable[[Step], None] = no_op
) -> SiteGraphs:
    """Copy the graphs that these methods need, and that of the logits, into ``graphs/``; exported where the cache has
    none.

    Without methods there are none. A graph that the network has no use for is left out, with the reason: guided
    backprop's without ReLUs, say. Raises as ``acceleration.cached_graphs``, and ModelError for a kept graph that no
    longer gives what the network gives.
    """
    if not methods:
        return SiteGraphs()
    (site / "graphs").mkdir()
    graphs: dict[Graph, SiteGraph] = {}
    missing: dict[Graph, str] = {}
    scores: Graph = "embedding" if classifier.spec.embedding_layer else "scores"
    graphs[scores] = graphs["scores"] = _export(classifier, scores, site, on_step)
    _require_agreement(site / graphs["scores"].file, classifier)
    for graph in _others(methods):
        try:
            graphs[graph] = _export(classifier, graph, site, on_step)
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


def _export(classifier: Classifier, graph: Graph, site: Path, on_step: Callable[[Step], None]) -> SiteGraph:
    kind: Kind = graph
    if kind == CAM and not classifier.spec.gradcam_layer:
        raise _LeftOutError
    exported = cached_graphs(classifier, kinds=(kind,), on_step=on_step) / f"{kind}.onnx"
    if not exported.exists():
        raise _LeftOutError
    file = f"graphs/{kind}.onnx"
    shutil.copyfile(exported, site / file)
    contract = OnnxRuntime(site / file, providers="cpu", threads=1).contract
    return SiteGraph(file, (site / file).stat().st_size, contract)


def _require_agreement(graph: Path, classifier: Classifier) -> None:
    """ModelError where the logits are others than the network's: no key of the cache sees an edited forward pass."""
    spec = classifier.spec
    x_NCHW = np.random.default_rng(0).standard_normal((1, spec.channels, *spec.input_size), dtype=np.float32)
    expected_NK = ForwardPass(classifier, torch.from_numpy(x_NCHW)).logits_NK
    difference = np.abs(OnnxRuntime(graph, providers="cpu").logits(x_NCHW) - expected_NK).max()
    if not difference <= _TOLERANCE * np.abs(expected_NK).max():  # negated, so that NaN disagrees too
        raise ModelError(
            f"the graph that is kept of {spec.name} gives other {LOGITS} than the network, as after an edit of its "
            "code; run `convlens cache clear`, then try again"
        )


def _why_undefined(classifier: Classifier, graph: Graph) -> str:
    """The network's own refusal of the method, where it has one."""
    method = "grad_cam" if graph == CAM else graph
    size = (1, classifier.spec.channels, *classifier.spec.input_size)
    try:
        run(method, ForwardPass(classifier, torch.zeros(size)), [0])
    except UnsupportedModelError as error:
        return error.message
    return f"the graph of {get(method).title} cannot be exported from this network"
