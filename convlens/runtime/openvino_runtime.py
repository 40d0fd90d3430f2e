"""Runs one exported graph by OpenVINO on the CPU: in float32, or in bfloat16 where the processor computes in it."""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convlens.errors import ModelError, OutOfMemoryError, RequestError
from convlens.runtime.graph_contract import EMBEDDING, LOGITS, GraphContract, Precision, read_contract
from convlens.runtime.memory import is_out_of_memory
from convlens.runtime.onnx_session import InputArray, as_input, split
from convlens.types import Floats
from convlens.utils.concurrency import cores


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """A module that cannot be imported for a while."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]  # as the import system wants it
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


# `import openvino` reports itself to an analytics service without asking, and writes an id into the home folder.
# Where its telemetry package is missing it has a stand-in, which it keeps: later it sends nothing either.
with _hidden("openvino_telemetry"):
    import openvino as ov

_CPU = torch.device("cpu")
# Images of one run: of 2 each took 2 to 6 % longer, one alone 4 to 17 %, of 8 up to 1 %.
BATCH = 4
_KINDS = ("scores", "embedding")
# With no hint OpenVINO computes in bfloat16 wherever the processor has it, float32 included.
_HINTS: dict[Precision, str] = {"float32": "f32", "half": "bf16"}
_ARITHMETIC: dict[Precision, str] = {"float32": "float32", "half": "bfloat16"}


@functools.cache
def precisions() -> tuple[Precision, ...]:
    """The precisions that this processor computes in: ``half`` needs instructions for bfloat16."""
    has_bf16 = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", "half") if has_bf16 else ("float32",)


class OpenVinoRuntime:
    """A graph of scores or embeddings, compiled for the CPU; safe to use from several threads.

    Images and outputs are those of ``OnnxRuntime``. ``parallel_runs`` batches are computed at once, by a core
    each. ``contract`` says what the graph is, ``name`` in what arithmetic it runs.
    """

    def __init__(
        self,
        graph: Path | str | bytes,
        *,
        precision: Precision = "float32",
        threads: int | None = None,
        batch: int | None = None,
    ) -> None:
        """Open a file, or the bytes of one; ``threads`` (default: one a core) run a batch each.

        With ``batch`` the graph is compiled for runs of just so many images, which saves up to 4 %; fewer are filled up
        and cost as much, more are refused.

        Raises ModelError for a file that is no graph of ours, does not keep its contract, is of another kind, in
        another precision or bound to a batch size, and for ``half`` on a processor without bfloat16: it would run in
        float32.
        """
        label = "the graph" if isinstance(graph, bytes) else str(graph)
        if precision not in precisions():
            raise ModelError(
                f"precision={precision!r} is not available on this processor; there are: {', '.join(precisions())}"
            )
        model = _read(graph, label)
        self.contract = _contract_of(model, label)
        self._batch = batch
        if batch is not None:
            (port,) = model.inputs
            model.reshape({port.get_any_name(): [batch, *list(port.partial_shape)[1:]]})
        self.name = f"openvino:{_ARITHMETIC[precision]}"
        self.device = _CPU
        self.parallel_runs = threads or cores()
        compiled = _compiled(model, label, _HINTS[precision], self.parallel_runs)
        # One more than run, so that a core that has finished finds the next images waiting.
        self._requests: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(self.parallel_runs + 1):
            self._requests.put(compiled.create_infer_request())

    def logits(self, x_NCHW: InputArray) -> Floats:
        """Logits (N, K)."""
        return self._outputs(x_NCHW, LOGITS)[0]

    def embeddings(self, x_NCHW: InputArray) -> Floats:
        """Embeddings (N, D), from a graph of embeddings."""
        return self._outputs(x_NCHW, EMBEDDING)[0]

    def logits_and_embeddings(self, x_NCHW: InputArray) -> tuple[Floats, Floats]:
        """Both from the same runs of a graph of embeddings."""
        logits_NK, embedding_ND = self._outputs(x_NCHW, LOGITS, EMBEDDING)
        return logits_NK, embedding_ND

    def logits_each(self, makers: Iterable[Callable[[], InputArray]]) -> Generator[Floats]:
        """Logits (N, K) of the images that each maker returns, in order.

        Makers are called in the calling thread, up to ``parallel_runs`` runs before their turn; what they return must
        stay as it is until its logits are there.
        """
        # OpenVINO's own threads run them: with a thread of Python for each run a sweep took 2 % longer.
        with contextlib.closing(self._run_each(makers, (LOGITS,))) as runs:
            for (logits_NK,) in runs:
                yield logits_NK

    def _outputs(self, x_NCHW: InputArray, *names: str) -> list[Floats]:
        """The named outputs, by all cores."""
        missing = [name for name in names if all(port.name != name for port in self.contract.outputs)]
        if missing:
            raise ModelError(
                f"a graph of kind {self.contract.kind!r} does not give {', '.join(missing)}; export another"
            )
        makers = [partial(_unchanged, images) for images in split(x_NCHW, self._batch or BATCH)]
        return [np.concatenate(parts) for parts in zip(*self._run_each(makers, names), strict=True)]

    def _run_each(self, makers: Iterable[Callable[[], InputArray]], names: Sequence[str]) -> Generator[list[Floats]]:
        """The named outputs of each maker's images, in order; after an error, and when closed, no more are begun."""
        begun: deque[_Run] = deque()
        try:
            for maker in makers:
                images = self._filled_up(as_input(maker(), self.contract.inputs[0], _CPU).numpy())
                # Who holds runs waits for no more of them: several threads would wait for each other.
                while (request := self._idle_request(wait=not begun)) is None:
                    yield self._outputs_of(begun, names)
                begun.append(_Run(request, *images))
                begun[-1].start()
            while begun:
                yield self._outputs_of(begun, names)
        except RuntimeError as error:
            raise _run_error(error, self.name) from error
        finally:
            for run in begun:
                with contextlib.suppress(RuntimeError):  # another error is on its way already
                    run.request.wait()
                self._requests.put(run.request)

    def _idle_request(self, *, wait: bool) -> Any:
        """A run that nobody uses, or None where there is none and it shall not ``wait``."""
        try:
            return self._requests.get(block=wait)
        except queue.Empty:
            return None

    def _outputs_of(self, begun: deque[_Run], names: Sequence[str]) -> list[Floats]:
        """The named outputs of the oldest run, once it has ended."""
        run = begun[0]
        outputs = run.outputs(names)
        self._requests.put(begun.popleft().request)
        return outputs

    def _filled_up(self, x_NCHW: Floats) -> tuple[Floats, int]:
        """The images, with copies of the first where a run must have more of them, and their number without those."""
        count, missing = len(x_NCHW), self._missing(len(x_NCHW))
        if missing:
            x_NCHW = np.concatenate([x_NCHW, np.repeat(x_NCHW[:1], missing, axis=0)])
        return x_NCHW, count

    def _missing(self, images: int) -> int:
        """Images that a run of so many lacks of the size that the graph is compiled for."""
        if self._batch is None:
            return 0
        if not 0 < images <= self._batch:
            raise RequestError(f"{self.name} is compiled for runs of {self._batch} images, not of {images}")
        return self._batch - images


@dataclass(frozen=True)
class _Run:
    """A run that has begun: ``images`` are read where they lie, the first ``count`` of them count."""

    request: Any
    images: Floats
    count: int

    def start(self) -> None:
        # As its own tensor: to find out what an array or a list of them is takes OpenVINO as long as to start.
        self.request.start_async(ov.Tensor(self.images, shared_memory=True))

    def outputs(self, names: Sequence[str]) -> list[Floats]:
        """Copies of the named outputs, once the run has ended: the next one writes into them."""
        self.request.wait()
        return [np.array(self.request.get_tensor(name).data[: self.count]) for name in names]


@functools.cache
def _core() -> Any:
    return ov.Core()


def _unchanged(images: InputArray) -> InputArray:
    return images


def _read(graph: Path | str | bytes, label: str) -> Any:
    try:
        return _core().read_model(graph if isinstance(graph, bytes) else str(graph))
    except RuntimeError as error:
        raise ModelError(f"{label} cannot be opened by OpenVINO {ov.__version__}: {_short(error)}") from error


def _contract_of(model: Any, label: str) -> GraphContract:
    """The contract in the metadata that OpenVINO read; ModelError unless the graph keeps it and can be run here."""
    metadata = model.get_rt_info(["framework"]).value if model.has_rt_info(["framework"]) else {}
    contract = read_contract(metadata, graph=label)
    if contract.kind not in _KINDS or contract.precision != "float32" or contract.batch is not None:
        raise ModelError(
            f"{label} is a graph of {contract.kind} in {contract.precision} for {contract.batch or 'any number of'} "
            f"images; OpenVINO runs graphs of {' or '.join(_KINDS)} in float32 for any number of them"
        )
    for ports, promised in ((model.inputs, contract.inputs), (model.outputs, contract.outputs)):
        actual = [(port.get_any_name(), port.get_element_type().to_dtype().name, _sizes(port)) for port in ports]
        expected = [(p.name, p.dtype, tuple(n if isinstance(n, int) else None for n in p.shape)) for p in promised]
        if actual != expected:
            raise ModelError(
                f"{label} does not keep its contract: it has {actual}, which says {expected}; export it again"
            )
    return contract


def _sizes(port: Any) -> tuple[int | None, ...]:
    """The port's dimensions, None where any size is allowed."""
    return tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)


def _compiled(model: Any, label: str, hint: str, threads: int) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads}
    try:
        # Not pinned: workers of a server would all pin their threads to the same cores.
        return _core().compile_model(model, "CPU", settings | {"ENABLE_CPU_PINNING": False})
    except RuntimeError as error:
        raise ModelError(f"{label} cannot be compiled by OpenVINO {ov.__version__}: {_short(error)}") from error


def _run_error(error: RuntimeError, name: str) -> ModelError | OutOfMemoryError:
    if is_out_of_memory(error):
        return OutOfMemoryError(f"{name} ran out of memory: {_short(error)}; use smaller batches or another device")
    return ModelError(f"{name} failed: {_short(error)}")


def _short(error: RuntimeError) -> str:
    """The last line: those before it say where in OpenVINO's sources."""
    return str(error).strip().splitlines()[-1][:300]
