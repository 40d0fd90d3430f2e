"""A batch through a model that consists of exported graphs alone: no network, no forward pass by torch."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from convlens.errors import ModelError, RequestError, UnsupportedModelError
from convlens.explain.forward import Forward, MakeImages, OnStep
from convlens.explain.scores import require_finite
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.explain.sweeps.backends import BATCH, COPIES_PER_RUN, GraphSweep, ParallelSweep, SweepBackend
from convlens.explain.sweeps.openvino import openvino_sweeps
from convlens.gallery import Gallery
from convlens.instrument import ReluRule, require_precision
from convlens.models.manifest import GRAPHS, read_manifest
from convlens.runtime.graph_contract import CAM, GradientKind, labels_sha256
from convlens.types import ArithmeticPrecision, Floats, Ints, ModelSpec, ScoreKind, no_op

if TYPE_CHECKING:
    from convlens.runtime.graph_set import GraphSet
    from convlens.runtime.onnx_runtime import OnnxRuntime, Providers

_GRADIENT_GRAPHS: Mapping[ReluRule, GradientKind] = {
    "plain": "saliency",
    "guided": "guided_backprop",
    "deconvnet": "deconvnet",
}


@dataclass(frozen=True)
class GraphModel:
    """Exported graphs of one model, in place of a Classifier.

    ``main`` is the graph of embeddings, which gives the logits as well. ``source`` names the folder it was read from.
    """

    spec: ModelSpec
    graphs: GraphSet
    main: OnnxRuntime
    source: str
    precision: ArithmeticPrecision = "float32"

    @property
    def device(self) -> torch.device:
        return self.main.device

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        providers: Providers = "auto",
        device_id: int = 0,
        threads: int | None = None,
        precision: ArithmeticPrecision = "float32",
    ) -> GraphModel:
        """Open the folder that ``export.bundle`` wrote; ``precision`` is as for ``convlens.load``.

        ModelError where it lacks ``model.json`` or a graph of embeddings, and for graphs of different models.
        """
        from convlens.runtime.graph_set import open_graphs  # on first use: a model by torch needs no ONNX Runtime

        require_precision(precision)
        source, spec = read_manifest(folder)
        if source != GRAPHS:
            raise ModelError(f"{folder} holds a packed network and no graphs; serve it with --runtime torch")
        graphs = open_graphs(
            [folder],
            weights_sha256=spec.weights_sha256,
            labels_sha256=labels_sha256(spec.labels),
            providers=providers,
            device_id=device_id,
            threads=threads,
            tf32=precision == "tf32",
        )
        main = graphs.first("embedding")
        if main is None:
            raise ModelError(f"{folder} lacks a graph of embeddings, which predictions come from; export it again")
        return cls(spec, graphs, main, f"{GRAPHS}:{folder}", precision)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the explanation methods that these graphs support."""
        from convlens.explain.registry import available_methods, get  # on first use: it imports this file

        kinds = [kind for kind in _GRADIENT_GRAPHS.values() if self.graphs.first(kind)]
        of_saliency = ["input_x_gradient"] if "saliency" in kinds else []
        of_maps = [name for name in available_methods() if get(name).needs == "maps"] if self.graphs.all(CAM) else []
        if "guided_backprop" not in kinds and "guided_grad_cam" in of_maps:
            of_maps.remove("guided_grad_cam")
        return (*kinds, *of_saliency, *of_maps, "occlusion", "rise", "neighbours")


class GraphForward(Forward):
    """A batch through exported graphs; otherwise as ``Forward``.

    Gradients come from graphs of saliency, guided backprop and deconvnet, a layer's maps from its graph of cam.
    UnsupportedModelError for a graph that the model lacks, RequestError for the gradient of a probability, which no
    graph computes, and for a layer that has no graph.
    """

    def __init__(
        self,
        model: GraphModel,
        x_NCHW: Tensor | Floats,
        *,
        sweeps: SweepAutotuner | None = None,
        gallery: Gallery | None = None,
        on_step: OnStep = no_op,
    ) -> None:
        super().__init__(
            model.spec,
            model.device,
            torch.as_tensor(x_NCHW).to(device=model.main.tensor_device, dtype=torch.float32),
            sweeps=sweeps or graph_sweeps(model),
            gallery=gallery,
            on_step=on_step,
            precision=model.precision,
        )
        self.runtime = model.main.name
        self.model = model
        self._shared = _SharedPass(model, self.x_NCHW)

    @property
    def arithmetic(self) -> str:
        return self.model.main.precision

    def compute(self) -> None:
        _ = self._shared.outputs

    def record(self) -> None:
        """Nothing to do: a graph of gradients makes its own forward pass."""

    def release(self) -> None:
        """Nothing to do: runs of graphs leave nothing behind."""

    @property
    def logits_NK(self) -> Floats:
        return require_finite(self._shared.outputs[0][self._rows])

    @property
    def embedding_ND(self) -> Floats:
        return self._shared.outputs[1][self._rows]

    def outputs_of(self, x_NCHW: Tensor | Floats) -> Floats:
        return require_finite(self.model.main.logits(x_NCHW))

    def outputs_in_parts(self, count: int, images: MakeImages) -> Generator[Floats]:
        return graph_outputs(self.model.main, count, images)

    def gradient(self, rule: ReluRule, target_N: Ints, *, score: ScoreKind = "logit", method: str) -> Floats:
        if score != "logit":
            raise RequestError(
                "an exported graph gives gradients of logits only; use score=logit", field="options.score"
            )
        graph = self.model.graphs.first(_GRADIENT_GRAPHS[rule])
        if graph is None:
            raise UnsupportedModelError(
                f"{method} needs the graph of {_GRADIENT_GRAPHS[rule]}, which this model lacks; there are: "
                f"{', '.join(self.model.methods)}",
                field="method",
            )
        self._shared.backwards += 1
        gradient_NCHW, _ = graph.gradient(self.x_NCHW, target_N)
        return gradient_NCHW

    def layer_gradient(self, layer: str, target_N: Ints) -> tuple[Tensor, Tensor]:
        maps_NCHW, gradient_NCHW = self._cam_graph(layer).maps_and_gradient(self.x_NCHW, target_N)
        self._shared.backwards += 1
        device = self.model.main.tensor_device
        return torch.from_numpy(maps_NCHW).to(device), torch.from_numpy(gradient_NCHW).to(device)

    def _cam_graph(self, layer: str) -> OnnxRuntime:
        """The graph of that layer's maps."""
        graphs = {graph.contract.layers[0]: graph for graph in self.model.graphs.all(CAM)}
        name = layer or "LAYER"
        command = f"convlens export cam --model {self.spec.name} --layer {name} -o FOLDER/cam-{name}.onnx"
        if not graphs:
            raise UnsupportedModelError(
                "class activation maps need a graph of cam, which this model lacks; there are: "
                f"{', '.join(self.model.methods)}; write one into the model's folder by `{command}`",
                field="method",
            )
        if layer not in graphs:
            raise RequestError(
                f"no graph of cam of layer {layer!r}; there are: {', '.join(map(repr, graphs))}; write another into "
                f"the model's folder by `{command}`",
                field="options.layer",
            )
        return graphs[layer]

    @property
    def counts(self) -> Mapping[str, int]:
        return {"forwards": self._shared.forwards, "backwards": self._shared.backwards, "relu_calls": 0}


class _SharedPass:
    """The run of the main graph, made once for all rows of a batch."""

    def __init__(self, model: GraphModel, x_NCHW: Tensor) -> None:
        self._model, self._x_NCHW = model, x_NCHW
        self._outputs: tuple[Floats, Floats] | None = None
        self.forwards = 0
        self.backwards = 0

    @property
    def outputs(self) -> tuple[Floats, Floats]:
        """Logits and embeddings."""
        if self._outputs is None:
            self._outputs = self._model.main.logits_and_embeddings(self._x_NCHW)
            self.forwards += 1
        return self._outputs


def scores_graph(graphs: GraphSet | None) -> OnnxRuntime | None:
    """The graph that gives logits in full precision; None where there is none."""
    scorers = [*graphs.all("scores"), *graphs.all("embedding")] if graphs else []
    return next((runtime for runtime in scorers if runtime.contract.precision == "float32"), None)


def graph_outputs(runtime: OnnxRuntime, count: int, images: MakeImages) -> Generator[Floats]:
    """Logits of the images by a graph of scores or embeddings, as ``Forward.outputs_in_parts``."""
    size = COPIES_PER_RUN if runtime.parallel_runs > 1 else BATCH
    makers = [partial(images, n, min(n + size, count)) for n in range(0, count, size)]
    return (require_finite(logits_NK) for logits_NK in runtime.logits_each(makers))


def graph_backends(graphs: GraphSet) -> Sequence[SweepBackend]:
    """The sweep backends of a set of graphs, those that are expected to be fastest first."""
    scorers = [*graphs.all("scores"), *graphs.all("embedding")][:1]
    batched = [ParallelSweep(runtime, precision=runtime.contract.precision) for runtime in scorers]
    whole = [GraphSweep(runtime) for runtime in graphs.all("occlusion")]
    # Parallel runs, a core each, are expected to beat a graph of the whole sweep; on one core they are not.
    by_onnx: list[SweepBackend] = (
        [*batched, *whole] if any(runtime.parallel_runs > 1 for runtime in scorers) else [*whole, *batched]
    )
    return [*by_onnx, *chain.from_iterable(map(openvino_sweeps, scorers))]


def graph_sweeps(model: GraphModel) -> SweepAutotuner:
    """The sweep backends of a model that has no network; ModelError without a graph in full precision."""
    backends = graph_backends(model.graphs)
    if not any(backend.kind == "batches" and backend.precision == "float32" for backend in backends):
        raise ModelError("a model of graphs needs its embeddings in float32, for sweeps to be compared with")
    return SweepAutotuner(backends)
