"""What turns pictures into features: the model itself by torch, or its exported graph by ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from convlens.errors import ModelError
from convlens.models import Classifier
from convlens.runtime.graph_contract import EMBEDDING, LOGITS, GraphContract, labels_sha256
from convlens.runtime.torch_runtime import TorchRuntime
from convlens.types import Floats, ModelSpec


@dataclass(frozen=True)
class Embedder:
    """``embed`` gives logits (N, K) and embeddings (N, D) of a whole batch.

    ``spec`` says which pictures it wants; with ``normalises`` as uint8 (N, H, W, C), else normalised float32
    (N, C, H, W). ``runtime`` names what answers, ``device`` where. ``graph_sha256`` is empty for torch.
    """

    embed: Callable[[NDArray[Any]], tuple[Floats, Floats]]
    spec: ModelSpec
    normalises: bool
    runtime: str
    device: str
    precision: str = "float32"
    graph_sha256: str = ""


def torch_embedder(classifier: Classifier, *, batch: int) -> Embedder:
    """The model's own forward."""
    runtime = TorchRuntime(classifier.module, classifier.spec.embedding_layer, classifier.device, batch=batch)
    return Embedder(runtime.logits_and_embeddings, classifier.spec, False, runtime.name, str(classifier.device))


def graph_embedder(classifier: Classifier, graph: Path) -> Embedder:
    """A graph of kind ``embedding``, on the classifier's device; the network itself then has nothing to do.

    Pictures are resized and cropped as the graph wants them. Raises ModelError for a graph that cannot be opened, of
    another kind, of other weights (with both hashes), of other class names or of another layer.
    """
    from convlens.runtime.onnx_runtime import OnnxRuntime  # an optional part, and slow to load

    on_gpu = classifier.device.type == "cuda"
    runtime = OnnxRuntime(
        graph,
        providers="cuda" if on_gpu else "cpu",
        device_id=classifier.device.index or 0,
        threads=None if on_gpu else torch.get_num_threads(),
    )
    _require(runtime.contract, classifier.spec, graph)

    def embed(pixels: NDArray[Any]) -> tuple[Floats, Floats]:
        if runtime.contract.batch is not None:
            return runtime.logits_and_embeddings(pixels)
        found = runtime.run(pixels)  # in one go, where the runtime would cut large batches
        return found[LOGITS], found[EMBEDDING]

    with graph.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    contract, spec = runtime.contract, _as_exported(classifier.spec, runtime.contract)
    return Embedder(embed, spec, contract.preprocessing, runtime.name, str(runtime.device), contract.precision, digest)


def _require(contract: GraphContract, spec: ModelSpec, graph: Path) -> None:
    if contract.weights_sha256 != spec.weights_sha256:
        raise ModelError(
            f"{graph} was exported from weights {contract.weights_sha256} of {contract.model}, but {spec.name} has "
            f"{spec.weights_sha256}; export it again from these, or name its own model"
        )
    if contract.kind != "embedding" or contract.layers != (spec.embedding_layer,):
        raise ModelError(
            f"{graph} is of kind {contract.kind!r} and layers {', '.join(contract.layers) or 'none'}; this needs a "
            f"graph of kind 'embedding' of layer {spec.embedding_layer}: `convlens export embedding`"
        )
    if contract.labels_sha256 != labels_sha256(spec.labels):
        raise ModelError(f"{graph} was exported with other class names than {spec.name} has; export it again")


def _as_exported(spec: ModelSpec, contract: GraphContract) -> ModelSpec:
    return replace(
        spec,
        crop=contract.crop,
        resize=contract.resize,
        interpolation=contract.interpolation,
        mean=contract.mean,
        std=contract.std,
    )


def open_embedder(classifier: Classifier, graph: Path | None, *, batch: int) -> Embedder:
    """The graph where one is given, else torch."""
    return graph_embedder(classifier, graph) if graph else torch_embedder(classifier, batch=batch)
