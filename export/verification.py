"""Verification of a graph: a real ONNX Runtime session compared with torch, at batch sizes that were not traced.

Gradients are compared by quantile. A gradient jumps where a ReLU's input passes zero. Of a network's million units some
lie within rounding of it, switch in one float32 computation and not in another, and then move the pixels that they
see, in torch as much as in ONNX Runtime: by 1e-2 of the largest pixel, on one image in three. So the reference is the
eager explanation in float64, and for every batch size there must be one image in which nothing switched: there every
single pixel counts. In all images a quarter of the pixels must agree as well: that many are untouched by a unit that
switches, but not in a row that got the target of another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convlens import image
from convlens.errors import ModelError, UnsupportedModelError
from convlens.explain import ForwardPass
from convlens.explain.sweeps.windows import Windows
from convlens.instrument import arithmetic, copy_of, tapped
from convlens.models import Classifier
from convlens.runtime.graph_contract import (
    BACKWARD,
    CAM,
    EMBEDDING,
    GRADIENT,
    GRADIENTS,
    LOG_SUMS,
    LOGITS,
    MAPS,
    MAPS_GRADIENT,
    SCORES,
    GraphContract,
)
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.runtime.torch_runtime import TorchRuntime, as_input
from convlens.types import Bytes8, Floats, Ints, ModelSpec
from export.gradients.tracing import RULES

_BATCHES = (1, 3, 8)
_SAMPLED_WINDOWS = 16  # of a sweep, spread over the grid, are computed by torch; ONNX Runtime computes all
_FILLS = (0.0, -1.5)
_TRIES = 10  # batches of noise that may be drawn to find an image in which no ReLU switches


@dataclass(frozen=True)
class Deviation:
    """``relative`` is max |torch - onnx| / max |torch| of one output, at one batch size; of a gradient, see above."""

    output: str
    batch: int
    relative: float


def deviations(runtime: OnnxRuntime, classifier: Classifier, spec: ModelSpec) -> tuple[Deviation, ...]:
    """How far each output of the graph is from the classifier's own network. ModelError where torch gives NaN.

    ``spec`` is the classifier's, with the graph's size of images, which are seeded noise. The reference shares no code
    with the modules that were exported: it uses torch's runtime, layer hooks, ``image.normalise``, and windows that
    are filled one by one.
    """
    kind = runtime.contract.kind
    if kind in BACKWARD:
        return tuple(_gradients(runtime, classifier, spec))
    compared = _sweeps if kind == "occlusion" else _batches
    return tuple(compared(runtime, classifier, spec))


def reference(contract: GraphContract) -> str:
    """What ``deviations`` compares at, in words."""
    if contract.kind == "occlusion":
        return f"on up to {_SAMPLED_WINDOWS} windows of each sweep"
    return f"at batch {', '.join(map(str, _batch_sizes(contract)))}"


def relative(torch_s: Floats, onnx_s: Floats) -> float:
    """max |a - b| / max |a|; infinity where the graph gives NaN or infinity, ModelError where torch does."""
    if not np.isfinite(torch_s).all():
        raise ModelError("torch gives NaN or infinity for noise pictures; the weights may be damaged")
    if not np.isfinite(onnx_s).all():
        return float("inf")
    largest = float(np.abs(torch_s).max())
    return float(np.abs(torch_s - onnx_s).max()) / (largest or 1.0)


def _batch_sizes(contract: GraphContract) -> tuple[int, ...]:
    return _BATCHES if contract.batch is None else (contract.batch,)


def _batches(runtime: OnnxRuntime, classifier: Classifier, spec: ModelSpec) -> Iterator[Deviation]:
    for count in _batch_sizes(runtime.contract):
        images_NHWC = _noise(count, spec)
        x_NCHW = np.stack([image.normalise(image_HWC, spec) for image_HWC in images_NHWC])
        outputs = runtime.run(images_NHWC if runtime.contract.preprocessing else x_NCHW)
        for output, expected in _torch(classifier, spec, runtime.contract, x_NCHW).items():
            yield Deviation(output, count, relative(expected, outputs[output]))


def _torch(classifier: Classifier, spec: ModelSpec, contract: GraphContract, x_NCHW: Floats) -> Mapping[str, Floats]:
    if contract.kind == "features":
        in_float32 = arithmetic("float32", classifier.device)
        with torch.inference_mode(), in_float32, tapped(classifier.module, outputs=contract.layers) as tap:
            tap.module(as_input(x_NCHW, classifier.module, classifier.device))
        return {layer: tap.outputs[layer].cpu().numpy() for layer in contract.layers}
    logits_NK, embedding_ND = _runtime(classifier, spec).logits_and_embeddings(x_NCHW)
    return {LOGITS: logits_NK} | ({EMBEDDING: embedding_ND} if contract.kind == "embedding" else {})


def _gradients(runtime: OnnxRuntime, classifier: Classifier, spec: ModelSpec) -> Iterator[Deviation]:
    double = dataclasses.replace(classifier, module=copy_of(classifier.module).double(), graphs=None)
    name = MAPS_GRADIENT if runtime.contract.kind == CAM else GRADIENT
    for count in _batch_sizes(runtime.contract):
        gradient, others = float("inf"), dict[str, float]()
        for attempt in range(_TRIES):
            images_NHWC = _noise(count, spec, attempt)
            x_NCHW = np.stack([image.normalise(image_HWC, spec) for image_HWC in images_NHWC])
            target_N = (np.arange(count) * 7 + attempt) % spec.classes
            # all at once, where runtime.gradient would cut a batch into smaller ones
            outputs = runtime.run(images_NHWC if runtime.contract.preprocessing else x_NCHW, target_N)
            expected = _eager(double, runtime.contract, x_NCHW, target_N)
            gradient = min(gradient, _gradient_deviation(expected.pop(name), outputs[name]))
            for output, values in expected.items():
                others[output] = max(others.get(output, 0.0), relative(values, outputs[output]))
            if gradient <= runtime.contract.tolerance:
                break
        yield Deviation(name, count, gradient)
        for output, off in others.items():
            yield Deviation(output, count, off)


def _sweeps(runtime: OnnxRuntime, classifier: Classifier, spec: ModelSpec) -> Iterator[Deviation]:
    geometry = runtime.contract.sweep
    assert geometry is not None, "an occlusion graph without its windows"
    windows = Windows(*spec.input_size, geometry.window, geometry.stride)
    sample = np.unique(np.linspace(0, len(windows) - 1, _SAMPLED_WINDOWS).round().astype(int))
    for image_HWC, fill, extreme in zip(_noise(2, spec), _FILLS, (np.argmax, np.argmin), strict=True):
        x_CHW = image.normalise(image_HWC, spec)
        # the largest or smallest logit: of a score near zero, rounding alone would be a large part
        target = int(extreme(_runtime(classifier, spec).logits(x_CHW[None])[0]))
        network_input = image_HWC if runtime.contract.preprocessing else x_CHW
        outputs = runtime.run(network_input[None], np.asarray(target), np.asarray(fill, np.float32))
        hidden_NCHW = np.stack([_hidden(x_CHW, windows, int(index), fill) for index in sample])
        logits_NK = _runtime(classifier, spec).logits(hidden_NCHW)
        expected = {SCORES: logits_NK[:, target], LOG_SUMS: np.logaddexp.reduce(logits_NK, axis=1)}
        for output, values in expected.items():
            yield Deviation(output, 1, relative(values, outputs[output].reshape(-1)[sample]))


def _hidden(x_CHW: Floats, windows: Windows, index: int, fill: float) -> Floats:
    top, left = windows.corners[index]
    hidden_CHW = x_CHW.copy()
    hidden_CHW[:, top : top + windows.window, left : left + windows.window] = fill
    return hidden_CHW


def _runtime(classifier: Classifier, spec: ModelSpec) -> TorchRuntime:
    return TorchRuntime(classifier.module, spec.embedding_layer, classifier.device, precision="float32")


def _noise(count: int, spec: ModelSpec, attempt: int = 0) -> Bytes8:
    shape = (count, *spec.input_size, spec.channels)
    return np.random.default_rng((count, attempt)).integers(0, 256, shape, dtype=np.uint8)


def _eager(double: Classifier, contract: GraphContract, x_NCHW: Floats, target_N: Ints) -> dict[str, Floats]:
    """Every output of the graph, without it."""
    forward = ForwardPass(double, x_NCHW.astype(np.float64))
    try:
        tensors = _eager_gradient(forward, contract, target_N)
    except RuntimeError as error:
        raise UnsupportedModelError(f"gradients are compared in float64, and there this fails: {error}") from error
    outputs = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise ModelError("torch's gradient is NaN or infinite for noise pictures; the weights may be damaged")
    return outputs | {LOGITS: forward.logits_NK}


def _eager_gradient(forward: ForwardPass, contract: GraphContract, target_N: Ints) -> dict[str, Tensor]:
    kind = contract.kind
    if kind in GRADIENTS:
        return {GRADIENT: forward.gradient(RULES[kind], target_N, method=kind)}
    maps_NCHW, gradient_NCHW = forward.layer_gradient(contract.layers[0], target_N)
    return {MAPS: maps_NCHW, MAPS_GRADIENT: gradient_NCHW}


def _gradient_deviation(expected_NCHW: Floats, graph_NCHW: Floats) -> float:
    """The largest difference in the row that agrees best or, if that is more, the lower quartile of the worst row.

    Each is relative to the row's largest value. Rows whose gradient is 0 prove little and count only where there are no
    others. Infinity where the graph gives NaN or infinity.
    """
    if not np.isfinite(graph_NCHW).all():
        return float("inf")
    expected_NP, graph_NP = (rows.reshape(len(rows), -1) for rows in (expected_NCHW, graph_NCHW))
    largest_N = np.abs(expected_NP).max(axis=1)
    alive_N = largest_N > 0
    off_NP = np.abs(expected_NP - graph_NP) / np.where(alive_N, largest_N, 1.0)[:, None]
    proving_N = alive_N if alive_N.any() else ~alive_N
    return max(float(off_NP[proving_N].max(axis=1).min()), float(np.quantile(off_NP, 0.25, axis=1).max()))
