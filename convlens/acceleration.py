"""A classifier's network exported once for this machine, to run on ONNX Runtime from then on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

import convlens
from convlens.errors import RequestError
from convlens.instrument import copy_of
from convlens.models import Classifier
from convlens.runtime.graph_contract import Kind, Strategy, labels_sha256
from convlens.runtime.torch_runtime import TorchRuntime
from convlens.types import Step, no_op
from convlens.utils.cache_dir import CacheDir

if TYPE_CHECKING:
    from convlens.runtime.graph_set import GraphSet

T = TypeVar("T")
OnStep = Callable[[Step], None]
# Logits and embeddings in one graph. On two cores its parallel runs made sweeps as fast as a graph of scores, and no
# slower than one of the whole sweep, each of which would take as long again to export.
_KIND: Kind = "embedding"


def accelerate(classifier: Classifier, *, on_step: OnStep = no_op) -> Classifier:
    """The classifier with its network as a graph of ONNX Runtime: occlusion sweeps, features and galleries use that.

    The graph is exported at the first call, which takes from five seconds to a minute, and kept in a cache folder
    (docs/acceleration.md). At each call it is compared with the network, on one image; one that disagrees, as after an
    edit of the network's code, is exported again. It holds the weights as they are now. ``on_step`` gets the stages of
    an export, and nothing where there is none. The given classifier is unchanged.

    Raises RequestError without onnx, UnsupportedModelError for a network that cannot be exported, ModelError for one
    whose graph disagrees with it, ConvLensError where the cache folder cannot be written.
    """
    # On a GPU either may round to TF32, and a right graph would seem to disagree.
    network = classifier if classifier.device.type == "cpu" else _copied_to_cpu(classifier)

    def opened(folder: Path) -> GraphSet | None:
        graphs = _open(folder, network)
        if not _agrees(graphs, network):
            return None
        return graphs if network is classifier else _open(folder, classifier)

    return replace(classifier, graphs=_cached(network, opened, (_KIND,), 32, 16, "full", on_step))


def cached_graphs(
    classifier: Classifier,
    *,
    kinds: Sequence[Kind],
    window: int = 32,
    stride: int = 16,
    strategy: Strategy = "full",
    on_step: OnStep = no_op,
) -> Path:
    """A folder with these graphs of the network, exported where the cache has none; to be read soon, and only read.

    ``window`` and ``stride`` are in pixels, and matter to occlusion graphs only. Raises as ``export.bundle.bundle``
    does, and RequestError without onnx.
    """
    return _cached(classifier, Path, kinds, window, stride, strategy, on_step)


def cached_features(classifier: Classifier, layers: Sequence[str], *, on_step: OnStep = no_op) -> Path:
    """A folder with the graph of these layers' outputs, ``features.onnx``, as ``cached_graphs`` has the others.

    Raises as ``export.exporter.export`` does, and RequestError without onnx.
    """

    def fill(folder: Path) -> None:
        from export.exporter import export  # on first use: the exporter takes a second to import

        folder.mkdir()
        export(classifier, "features", folder / "features.onnx", layers=layers, on_step=on_step)

    return _kept(classifier, ("features",), layers, fill, Path)


def can_export() -> bool:
    """Whether the packages of ``convlens[onnx]`` are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def _cached(
    classifier: Classifier,
    load: Callable[[Path], T | None],
    kinds: Sequence[Kind],
    window: int,
    stride: int,
    strategy: Strategy,
    on_step: OnStep,
) -> T:
    def fill(folder: Path) -> None:
        from export.bundle import bundle  # on first use: the exporter takes a second to import

        bundle(classifier, folder, kinds=kinds, window=window, stride=stride, strategy=strategy, on_step=on_step)

    return _kept(classifier, kinds, (window, stride, strategy) if "occlusion" in kinds else (), fill, load)


def _kept(
    classifier: Classifier,
    kinds: Sequence[Kind],
    details: Sequence[int | str],
    fill: Callable[[Path], None],
    load: Callable[[Path], T | None],
) -> T:
    """The cache's entry of these graphs; ``details`` are what decides about them beside their kinds."""
    if not can_export():
        raise RequestError("exporting graphs needs onnx; run `pip install 'convlens[onnx]'`")
    facts = {"model": classifier.spec.name, "kind": ", ".join(kinds)}
    return CacheDir().get(_key(classifier, kinds, details), facts=facts, fill=fill, load=load)


def _key(classifier: Classifier, kinds: Sequence[Kind], details: Sequence[int | str]) -> str:
    """Names everything that decides what is exported, but for the code of the network."""
    from onnxruntime import __version__ as onnxruntime_version  # of whichever wheel

    from export.options import OPSET

    versions = [convlens.__version__, onnxruntime_version, *map(version, ("torch", "onnx", "onnxscript"))]
    facts = [classifier.source, asdict(classifier.spec), list(kinds), list(details), OPSET, versions]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _open(folder: Path, classifier: Classifier) -> GraphSet:
    from convlens.runtime.graph_set import open_graphs  # optional, and slow to load

    on_gpu = classifier.device.type == "cuda"
    graphs = open_graphs(
        [folder],
        weights_sha256=classifier.spec.weights_sha256,
        labels_sha256=labels_sha256(classifier.spec.labels),
        providers="cuda" if on_gpu else "cpu",
        device_id=classifier.device.index or 0,
        threads=None if on_gpu else torch.get_num_threads(),  # one setting limits both runtimes
        tf32=classifier.precision == "tf32",
    )
    for runtime in graphs.runtimes:
        runtime.read_whole()  # its entry in the cache may make room for others at any time
    return graphs


def _agrees(graphs: GraphSet, classifier: Classifier) -> bool:
    """Whether the graph gives what the network gives now: the weights' hash does not see an edited forward pass."""
    (runtime,), spec = graphs.all(_KIND), classifier.spec
    x_NCHW = np.random.default_rng(0).standard_normal((1, spec.channels, *spec.input_size), dtype=np.float32)
    runtime_by_torch = TorchRuntime(classifier.module, spec.embedding_layer, classifier.device, precision="float32")
    expected = runtime_by_torch.logits_and_embeddings(x_NCHW)
    return all(
        bool(np.abs(torch_ND - onnx_ND).max() <= runtime.contract.tolerance * np.abs(torch_ND).max())
        for torch_ND, onnx_ND in zip(expected, runtime.logits_and_embeddings(x_NCHW), strict=True)
    )


def _copied_to_cpu(classifier: Classifier) -> Classifier:
    return replace(classifier, module=copy_of(classifier.module).cpu(), device=torch.device("cpu"), graphs=None)
