"""What ``site.json`` says: all that a page must know of a model to prepare its images and to draw its maps."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from convlens.explain import Method, available_methods, get
from convlens.explorer.graphs import NEEDED, SiteGraph, SiteGraphs
from convlens.models import Classifier
from convlens.runtime.graph_contract import CAM, Port
from convlens.types import Bytes8, ModelSpec
from convlens.visualization.colormaps import diverging, sequential, vivid_signs

VERSION = 1
_NEEDS_SERVER = "not computed in a page; a server does: `convlens explore {model} --server URL`"
_NEEDS_GALLERY = "needs a gallery to search: `convlens explore {model} --gallery GALLERY`"
_NOT_ASKED = "its graph is not in this folder: `convlens explore {model} --methods all,{method}`"
_LATTICE = (
    "this network has no max pooling, without which the map is the same lattice for every image; all the same: "
    "`convlens explore {model} --methods all,{method}`"
)


def describe_model(classifier: Classifier) -> dict[str, Any]:
    """Name, weights, class names, and how logits become probabilities."""
    spec = classifier.spec
    return {
        "name": spec.name,
        "weights_sha256": spec.weights_sha256,
        "labels": list(spec.labels),
        "activation": spec.activation,
    }


def describe_preprocessing(spec: ModelSpec) -> dict[str, Any]:
    """The fields of the spec that decide how an image becomes an input, sizes as (height, width)."""
    return {
        "channels": spec.channels,
        "input_size": list(spec.input_size),
        "resize_size": list(spec.resize_size),
        "crop_mode": spec.crop_mode,
        "interpolation": spec.interpolation,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "display_channels": list(spec.display_channels),
    }


def describe_graphs(graphs: Mapping[Any, SiteGraph]) -> dict[str, Any]:
    """File, size, inputs and outputs of each graph, and the layer of that of class activation maps."""
    return {name: _describe_graph(name, graph) for name, graph in graphs.items()}


def describe_methods(
    classifier: Classifier,
    graphs: SiteGraphs,
    *,
    asked: Collection[str],
    lattice: bool,
    has_gallery: bool,
) -> list[dict[str, Any]]:
    """Every method with its options' defaults, its first graph, and what to do where the page cannot compute it.

    ``asked`` are those whose graphs the site should have; ``lattice``: deconvnet was left out of them, because its map
    would be one lattice.
    """

    def missing(name: str) -> str | None:
        if name not in NEEDED:
            return _NEEDS_SERVER
        if name == "neighbours":  # which nobody asks for but by a gallery
            return None if has_gallery and "embedding" in graphs.graphs else _NEEDS_GALLERY
        if name == "deconvnet" and lattice:
            return _LATTICE
        if name not in asked:
            return _NOT_ASKED
        return next((graphs.missing[graph] for graph in NEEDED[name] if graph in graphs.missing), None)

    model = shlex.quote(classifier.source)
    methods = []
    for name in available_methods():
        reason = missing(name)
        text = None if reason is None else reason.replace("{model}", model).replace("{method}", name)
        methods.append(_describe_method(get(name), None if text else NEEDED[name][0], text))
    return methods


def describe_colormaps() -> dict[str, list[list[int]]]:
    """The colour tables: ``sequential`` for 0..1, ``diverging`` for -1..1, ``vivid`` for below 0 and from 0 on."""
    return {
        "sequential": _table(sequential(np.linspace(0, 1, 256)[None], limit=1)),
        # An odd number of rows, so that the middle one is exactly 0, and white.
        "diverging": _table(diverging(np.linspace(-1, 1, 511)[None], limit=1)),
        "vivid": _table(vivid_signs(np.array([[-1.0, 1.0]]))),
    }


def describe_commands(classifier: Classifier) -> dict[str, str]:
    """The command lines that give the arrays that a page shows; the page fills in what is in braces."""
    model = shlex.quote(classifier.source)
    return {"explain": f"convlens explain {{file}} --model {model} --methods {{method}} --target {{target}}"}


def _describe_graph(name: str, graph: SiteGraph) -> dict[str, Any]:
    contract = graph.contract
    facts: dict[str, Any] = {
        "file": graph.file,
        "bytes": graph.bytes,
        "inputs": _ports(contract.inputs),
        "outputs": _ports(contract.outputs),
    }
    return facts | ({"layer": contract.layers[0]} if name == CAM else {})


def _ports(ports: Sequence[Port]) -> list[dict[str, Any]]:
    return [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in ports]


def _describe_method(method: Method, graph: str | None, missing: str | None) -> dict[str, Any]:
    return {
        "name": method.name,
        "title": method.title,
        "shows": method.shows,
        "does_not_show": method.does_not_show,
        "drawing": method.drawing,
        "overlay_signs": method.overlay_signs,
        "options": {name: default for name, (_, default) in method.options.items()},
        "graph": graph,
        "missing": missing,
    }


def _table(colours_1NC: Bytes8) -> list[list[int]]:
    rows: list[list[int]] = colours_1NC[0].tolist()
    return rows
