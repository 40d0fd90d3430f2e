"""Sweeps by OpenVINO on the CPU, from the same graphs as ONNX Runtime's; where ``convlens[openvino]`` is installed.

OpenVINO is imported, and a graph compiled, by the first sweep that asks for it: a second copy of the weights.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convlens.explain.sweeps.backends import ParallelSweep, SweepBackend
from convlens.explain.sweeps.windows import Windows
from convlens.types import Floats

if TYPE_CHECKING:
    from convlens.runtime.onnx_runtime import OnnxRuntime
    from convlens.runtime.onnx_session import InputArray
    from convlens.runtime.openvino_runtime import OpenVinoRuntime

_COPIES_PER_RUN = 4  # one or two took up to 15 % longer each


def openvino_sweeps(graph: OnnxRuntime) -> Sequence[SweepBackend]:
    """The sweep backends by OpenVINO of a graph of scores or embeddings; none where not installed, or on a GPU."""
    # None in float32: sweeps of three networks took 0.96 to 1.02 of ONNX Runtime's time.
    suits = graph.device.type == "cpu" and graph.contract.precision == "float32" and graph.contract.batch is None
    return [OpenVinoSweep(graph)] if suits and importlib.util.find_spec("openvino") else []


class OpenVinoSweep(ParallelSweep):
    """As ``ParallelSweep``, in bfloat16; supports no windows on a processor that does not compute in it."""

    fixed_run = _COPIES_PER_RUN

    def __init__(self, graph: OnnxRuntime) -> None:
        self._scorer_at_first_use = _AtFirstUse(graph)
        super().__init__(self._scorer_at_first_use, precision="half", copies=_COPIES_PER_RUN)

    def supports(self, windows: Windows) -> bool:
        return self._scorer_at_first_use.is_available


class _AtFirstUse:
    """The graph by OpenVINO, opened when it is first run."""

    name = "openvino:bfloat16"

    def __init__(self, graph: OnnxRuntime) -> None:
        self._graph = graph
        self._opened: OpenVinoRuntime | None = None
        self._lock = threading.Lock()

    @property
    def parallel_runs(self) -> int:
        return self._graph.threads

    @property
    def is_available(self) -> bool:
        """Whether it is open, or the processor has bfloat16 and the graph's file is still there."""
        from convlens.runtime.openvino_runtime import precisions

        graph = self._graph.graph
        return self._opened is not None or (
            "half" in precisions() and (isinstance(graph, bytes) or Path(graph).is_file())
        )

    def logits(self, x_NCHW: InputArray) -> Floats:
        return self._runtime().logits(x_NCHW)

    def logits_each(self, makers: Sequence[Callable[[], InputArray]]) -> Generator[Floats]:
        return self._runtime().logits_each(makers)

    def _runtime(self) -> OpenVinoRuntime:
        from convlens.runtime.openvino_runtime import OpenVinoRuntime

        with self._lock:
            if self._opened is None:
                threads = self._graph.threads
                opened = OpenVinoRuntime(self._graph.graph, precision="half", threads=threads, batch=_COPIES_PER_RUN)
                # The file is read a second time, perhaps long after the first.
                opened.contract.require_weights(self._graph.contract.weights_sha256)
                self._opened = opened
            return self._opened
