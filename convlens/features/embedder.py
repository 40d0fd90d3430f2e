"""What turns images into features: the model itself in torch, or its exported graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from convlens.errors import ModelError, UnsupportedModelError
from convlens.instrument import arithmetic_of
from convlens.models import Classifier
from convlens.runtime.graph_contract import EMBEDDING, LOGITS, GraphContract, labels_sha256
from convlens.runtime.torch_runtime import TorchRuntime
from convlens.types import Floats, ModelSpec

if TYPE_CHECKING:
    from convlens.runtime.onnx_runtime import OnnxRuntime


@dataclass(frozen=True)
class Embedder:
    """``embed`` gives logits (N, K) and embeddings (N, D) of a whole batch.

    ``spec`` says how images are prepared; with ``normalises`` they stay uint8 (N, H, W, C), else they are normalised
    float32 (N, C, H, W). ``runtime`` names what computes, ``device`` where, ``precision`` in what. ``graph_sha256`` is
    empty for torch.
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
    device, precision = classifier.device, classifier.precision
    if not classifier.spec.embedding_layer:
        raise UnsupportedModelError(
            f"{classifier.spec.name} shows no layer whose input is an embedding (of a scripted network nothing can be "
            "seen); load it with embedding_layer=, or load the network that it was made from"
        )
    runtime = TorchRuntime(classifier.module, classifier.spec.embedding_layer, device, batch=batch, precision=precision)
    multiplies_in = arithmetic_of(precision, device)
    return Embedder(runtime.logits_and_embeddings, classifier.spec, False, runtime.name, str(device), multiplies_in)


def graph_embedder(classifier: Classifier, graph: Path) -> Embedder:
    """A graph of kind ``embedding``, on the classifier's device; the network itself is not run.

    Images are resized and cropped for the graph. Raises ModelError for a graph that cannot be opened, is of another
    kind or layer, or was exported from other weights (with both hashes) or with other class names.
    """
    from convlens.runtime.onnx_runtime import OnnxRuntime  # optional, and slow to load

    on_gpu = classifier.device.type == "cuda"
    runtime = OnnxRuntime(
        graph,
        providers="cuda" if on_gpu else "cpu",
        device_id=classifier.device.index or 0,
        threads=None if on_gpu else torch.get_num_threads(),  # one setting limits both runtimes
        tf32=classifier.precision == "tf32",
    )
    _require_match(runtime.contract, classifier.spec, graph)
    return _runtime_embedder(classifier, runtime)


def _runtime_embedder(classifier: Classifier, runtime: OnnxRuntime) -> Embedder:
    contract = runtime.contract

    def embed(pixels: NDArray[Any]) -> tuple[Floats, Floats]:
        if contract.batch is not None:
            return runtime.logits_and_embeddings(pixels)
        outputs = runtime.run(pixels)  # in one run, where logits_and_embeddings would cut large batches
        return outputs[LOGITS], outputs[EMBEDDING]

    return Embedder(
        embed,
        _as_exported(classifier.spec, contract),
        contract.preprocessing,
        runtime.name,
        str(runtime.device),
        runtime.precision,
        runtime.sha256,
    )


def _require_match(contract: GraphContract, spec: ModelSpec, graph: Path) -> None:
    # Features of other weights look as good as any: nothing that comes later could notice.
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
    # The table of rows names the most probable class.
    if contract.labels_sha256 != labels_sha256(spec.labels):
        raise ModelError(f"{graph} was exported with other class names than {spec.name} has; export it again")


def _as_exported(spec: ModelSpec, contract: GraphContract) -> ModelSpec:
    # A graph may have been exported for another image size: it decides how images are prepared.
    return replace(
        spec,
        crop=contract.crop,
        resize=contract.resize,
        crop_mode=contract.crop_mode,
        crop_width=contract.crop_width,
        resize_width=contract.resize_width,
        interpolation=contract.interpolation,
        mean=contract.mean,
        std=contract.std,
    )


def open_embedder(classifier: Classifier, graph: Path | None, *, batch: int) -> Embedder:
    """By the graph where one is given, else by the classifier's own graph of embeddings, else by torch."""
    if graph:
        return graph_embedder(classifier, graph)
    runtime = classifier.graphs.first("embedding") if classifier.graphs else None
    return _runtime_embedder(classifier, runtime) if runtime else torch_embedder(classifier, batch=batch)
