"""Runs one exported graph by ONNX Runtime, on the provider asked for and no other."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from convlens.errors import ModelError, RequestError, TargetError
from convlens.instrument import arithmetic_of
from convlens.runtime.graph_contract import (
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
    read_contract,
)
from convlens.runtime.onnx_session import (
    CUDA,
    ORT_ERRORS,
    InputArray,
    Providers,
    as_input,
    binding_arguments,
    empty_output,
    named_sizes,
    open_session,
    provider_of,
    run_error,
    split,
)
from convlens.types import Floats, Ints, ScoreKind
from convlens.utils.concurrency import ParallelRuns, cores
from convlens.utils.files import sha256_of_file

__all__ = ["OnnxRuntime", "Providers"]

# Images of one run, for graphs that take any number; a caller's larger batch is cut into these. A GPU wants many. On
# two cores 4 were fastest (the default model: 4.6 ms each, 5.0 in batches of 14), and a gradient costs the same in any
# batch; what the largest run needs, the process keeps.
_BATCH, _CPU_BATCH, _CPU_GRADIENT_BATCH = 32, 4, 2
# Parallel runs need a second session, and with it the weights once more.
_LARGEST_TWICE_BYTES = 256 * 2**20
_ORT_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "uint8": "tensor(uint8)"}


class OnnxRuntime:
    """One graph in a session; safe to use from several threads.

    Images are float32 (N, C, H, W), normalised; for graphs with preprocessing folded in uint8 (N, H, W, C). Torch
    tensors are read where they lie. ``contract`` says what the graph is, ``name`` which provider runs it, ``precision``
    what it multiplies in: float32, tf32 or half. ``device`` is where it runs, ``tensor_device`` where its inputs and
    outputs lie: the same, but main memory for a GPU of which a torch built without CUDA knows nothing.
    """

    def __init__(
        self,
        graph: Path | str | bytes,
        *,
        providers: Providers = "auto",
        device_id: int = 0,
        threads: int | None = None,
        spin: bool = False,
        memory_limit_bytes: int | None = None,
        tf32: bool = False,
    ) -> None:
        """Open a file, or the bytes of one.

        ``auto`` means CUDA where torch finds a GPU, else the CPU. ``threads`` (default: one a core) work on one run
        together; with ``spin`` they stay awake between its steps, which was a third faster on two idle cores and up to
        twice as slow on busy ones. ``memory_limit_bytes`` bounds ONNX Runtime's arena on a GPU; it has no such bound on
        the CPU. ``tf32`` lets a GPU round to TF32. Raises ModelError for a file that is no graph of ours or does not
        keep its contract, for a provider that does not start, since there is no fall-back, and for ``tf32`` on a GPU
        where torch is built without CUDA.
        """
        label = "the graph" if isinstance(graph, bytes) else str(graph)
        provider = provider_of(providers)
        if provider == CUDA and tf32 and torch.version.cuda is None:
            raise ModelError(
                f"precision tf32 was asked for, but whether a GPU has TF32 is torch's knowledge, and torch "
                f"{torch.__version__} is built without CUDA; use precision float32"
            )
        self._open = partial(
            open_session,
            graph,
            label,
            provider,
            device_id=device_id,
            spin=spin,
            memory_limit_bytes=memory_limit_bytes,
            tf32=tf32,
        )
        self._session = self._open(threads=threads)
        self.contract = read_contract(self._session.get_modelmeta().custom_metadata_map, graph=label)
        _require_ports(self._session, self.contract, label)
        self.device = torch.device("cuda", device_id) if provider == CUDA else torch.device("cpu")
        self.tensor_device = self.device if torch.version.cuda else torch.device("cpu")
        self.name = f"onnxruntime:{provider}"
        self.graph, self.threads = graph, threads or cores()
        in_float32 = arithmetic_of("tf32" if tf32 else "float32", self.device)
        self.precision = in_float32 if self.contract.precision == "float32" else self.contract.precision
        self._label = label
        self._parallel = self._parallel_runs(graph, self.threads)
        self._single_threaded: Any = None
        self._lock = threading.Lock()

    @cached_property
    def sha256(self) -> str:
        """Of the graph's file."""
        graph = self.graph
        return hashlib.sha256(graph).hexdigest() if isinstance(graph, bytes) else sha256_of_file(Path(graph))

    def read_whole(self) -> None:
        """Read now what is otherwise read when it is first needed: from here on the file may go."""
        _ = self.sha256
        if self._parallel is not None:
            self._single_threaded_session()

    def on_one_core(self) -> OnnxRuntime:
        """The same graph, run after run by one thread: for threads of one's own that run it at once.

        As it is on a GPU, and where the weights are too large to be held twice.
        """
        alone = copy.copy(self)
        if self.threads > 1 and self.device.type == "cpu" and not _is_large(self.graph):
            alone._session, alone._parallel, alone.threads = self._single_threaded_session(), None, 1
        return alone

    def require_weights(self, weights_sha256: str) -> None:
        """ModelError where the graph was exported from other weights, with both hashes."""
        self.contract.require_weights(weights_sha256)

    def logits(self, x_NCHW: InputArray) -> Floats:
        """Logits (N, K), from a graph of scores or of embeddings."""
        return self._outputs([x_NCHW], LOGITS)[LOGITS]

    @property
    def parallel_runs(self) -> int:
        """Number of runs that ``logits_each`` makes at once."""
        return self._parallel.count if self._parallel else 1

    def logits_each(self, makers: Sequence[Callable[[], InputArray]]) -> Generator[Floats]:
        """Logits (N, K) of the images that each maker returns, in order; several at once on a CPU of several cores.

        Makers are called when their turn comes, in the threads that run the graph. For a graph that takes any number of
        images; few from each maker: they are not cut into smaller batches.
        """
        if self._parallel is None:
            return (self.logits(maker()) for maker in makers)
        session = self._single_threaded_session()
        return self._parallel.results([partial(self._logits_by, session, maker) for maker in makers])

    def embeddings(self, x_NCHW: InputArray) -> Floats:
        """Embeddings (N, D), from a graph of embeddings."""
        return self._outputs([x_NCHW], EMBEDDING)[EMBEDDING]

    def logits_and_embeddings(self, x_NCHW: InputArray) -> tuple[Floats, Floats]:
        """Both from the same runs of a graph of embeddings."""
        outputs = self._outputs([x_NCHW], LOGITS, EMBEDDING)
        return outputs[LOGITS], outputs[EMBEDDING]

    def features(self, x_NCHW: InputArray) -> dict[str, Floats]:
        """The outputs of the graph's layers by name, from a graph of features."""
        self._require_kind("features")
        return self._outputs([x_NCHW], *self.contract.layers)

    def gradient(self, x_NCHW: InputArray, target_N: Ints) -> tuple[Floats, Floats]:
        """d logit(target) / d image (N, C, H, W), each row by its own target, and the logits (N, K).

        From a graph of saliency, guided_backprop or deconvnet. TargetError for a class that does not exist.
        """
        self._require_kind(*GRADIENTS)
        outputs = self._outputs([x_NCHW, self._targets(target_N, len(x_NCHW))], GRADIENT, LOGITS)
        return outputs[GRADIENT], outputs[LOGITS]

    def maps_and_gradient(self, x_NCHW: InputArray, target_N: Ints) -> tuple[Floats, Floats]:
        """The layer's maps (N, C, h, w) and d logit(target) / d maps, each row by its own target, from a graph of cam.

        TargetError for a class that does not exist.
        """
        self._require_kind(CAM)
        outputs = self._outputs([x_NCHW, self._targets(target_N, len(x_NCHW))], MAPS, MAPS_GRADIENT)
        return outputs[MAPS], outputs[MAPS_GRADIENT]

    def sweep(self, x_CHW: InputArray, target: int, *, fill: float = 0.0, score: ScoreKind = "logit") -> Floats:
        """The target's score with each window hidden in turn (R, Q), from a graph of occlusion.

        ``fill`` is in normalised units. Raises RequestError for an image of another shape, TargetError for a class
        that does not exist.
        """
        self._require_kind("occlusion")
        self._require_class(target)
        if score not in get_args(ScoreKind):
            raise RequestError(f"no score {score!r}; there are: {', '.join(get_args(ScoreKind))}", field="score")
        outputs = self.run(x_CHW[None], np.asarray(target, np.int64), np.asarray(fill, np.float32))
        # A probability is the softmax: exp(logit - log of the sum of exp of all logits).
        return outputs[SCORES] if score == "logit" else np.exp(outputs[SCORES] - outputs[LOG_SUMS])

    def run(self, *arrays: InputArray) -> dict[str, Floats]:
        """One run: all outputs by name, for all inputs in the contract's order. RequestError for a wrong shape."""
        return {name: value.cpu().numpy() for name, value in self.run_on_device(*arrays).items()}

    def run_on_device(self, *arrays: InputArray) -> dict[str, Tensor]:
        """As ``run``, with the outputs left on ``tensor_device``; inputs that lie there already are not copied."""
        device = self.tensor_device
        inputs = [as_input(array, port, device) for array, port in zip(arrays, self.contract.inputs, strict=True)]
        sizes = named_sizes(inputs, self.contract.inputs)
        outputs = {port.name: empty_output(port, sizes, device) for port in self.contract.outputs}
        self._run_bound(inputs, outputs)
        return outputs

    def _run_bound(self, inputs: list[Tensor], outputs: Mapping[str, Tensor]) -> None:
        binding = self._session.io_binding()
        for port, tensor in zip(self.contract.inputs, inputs, strict=True):
            binding.bind_input(port.name, *binding_arguments(tensor, port))
        for port in self.contract.outputs:
            binding.bind_output(port.name, *binding_arguments(outputs[port.name], port))
        if self.tensor_device.type == "cuda":  # ONNX Runtime reads on a stream of its own, and returns when it is done
            torch.cuda.current_stream(self.device).synchronize()
        try:
            self._session.run_with_iobinding(binding)
        except ORT_ERRORS as error:
            raise run_error(error, self.name) from error

    def _parallel_runs(self, graph: Path | str | bytes, count: int) -> ParallelRuns | None:
        """None where one run at a time is better, or the weights are too large to be held twice."""
        takes_any_number = self.contract.batch is None and any(port.name == LOGITS for port in self.contract.outputs)
        if count == 1 or self.device.type != "cpu" or len(self.contract.inputs) > 1 or not takes_any_number:
            return None
        return None if _is_large(graph) else ParallelRuns(count)

    def _single_threaded_session(self) -> Any:
        """A session whose runs take one thread each; opened when first needed."""
        with self._lock:
            if self._single_threaded is None:
                session = self._open(threads=1)
                # The file is read a second time, perhaps long after the first.
                if session.get_modelmeta().custom_metadata_map != self._session.get_modelmeta().custom_metadata_map:
                    raise ModelError(f"{self._label} was replaced by another graph after it was opened; open it again")
                self._single_threaded = session
            return self._single_threaded

    def _logits_by(self, session: Any, maker: Callable[[], InputArray]) -> Floats:
        # Not bound: outputs are small, and to bind them took a twentieth of such a short run.
        (port,) = self.contract.inputs
        try:
            (logits_NK,) = session.run([LOGITS], {port.name: as_input(maker(), port, self.device).numpy()})
        except ORT_ERRORS as error:
            raise run_error(error, self.name) from error
        return np.asarray(logits_NK)

    def _outputs(self, arrays: list[InputArray], *names: str) -> dict[str, Floats]:
        """The named outputs, in as many runs as the number of images takes."""
        missing = [name for name in names if all(port.name != name for port in self.contract.outputs)]
        if missing:
            raise ModelError(
                f"a graph of kind {self.contract.kind!r} does not give {', '.join(missing)}; export another"
            )
        batches = zip(*(split(array, self._batch_size) for array in arrays), strict=True)
        results = [self._run_batch(batch) for batch in batches]
        return {name: np.concatenate([result[name] for result in results]) for name in names}

    @property
    def _batch_size(self) -> int:
        """Images of one run."""
        if self.contract.batch is not None:
            return self.contract.batch
        on_cpu = _CPU_GRADIENT_BATCH if self.contract.kind in GRADIENTS else _CPU_BATCH
        return on_cpu if self.device.type == "cpu" else _BATCH

    def _run_batch(self, arrays: Sequence[InputArray]) -> dict[str, Floats]:
        """One batch, filled up with its first row where the graph is bound to a larger one."""
        count, bound = len(arrays[0]), self.contract.batch
        if bound is None or count == bound:
            return self.run(*arrays)
        rows = [*range(count), *[0] * (bound - count)]
        outputs = self.run(*(torch.as_tensor(array)[rows] for array in arrays))
        return {name: value[:count] for name, value in outputs.items()}

    def _targets(self, target_N: Ints, count: int) -> Ints:
        targets = np.asarray(target_N)
        if targets.shape != (count,) or targets.dtype.kind not in "iu":
            raise TargetError(f"{count} images need as many integer targets; got {target_N!r}", field="target")
        for target in targets.tolist():
            self._require_class(target)
        return targets.astype(np.int64)

    def _require_class(self, target: int) -> None:
        if not 0 <= target < self.contract.classes:
            raise TargetError(f"no class {target}; there are 0..{self.contract.classes - 1}", field="target")

    def _require_kind(self, *kinds: str) -> None:
        if self.contract.kind not in kinds:
            needed = " or ".join(map(repr, kinds))
            raise ModelError(f"this needs a graph of kind {needed}; the given one is of kind {self.contract.kind!r}")


def _is_large(graph: Path | str | bytes) -> bool:
    return (len(graph) if isinstance(graph, bytes) else Path(graph).stat().st_size) > _LARGEST_TWICE_BYTES


def _require_ports(session: Any, contract: GraphContract, label: str) -> None:
    """ModelError unless the graph's own inputs and outputs are those of its contract."""
    for ports, promised in ((session.get_inputs(), contract.inputs), (session.get_outputs(), contract.outputs)):
        actual = [(port.name, port.type, tuple(port.shape)) for port in ports]
        expected = [(port.name, _ORT_TYPES[port.dtype], port.shape) for port in promised]
        if actual != expected:
            raise ModelError(
                f"{label} does not keep its contract: it has {actual}, which says {expected}; export it again"
            )
