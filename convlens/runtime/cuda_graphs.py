"""A network's passes as CUDA graphs: a forward pass and its backward passes, replayed instead of launched anew.

At small batches a GPU waits for Python: the three gradient explanations of one image took 37 ms launched kernel by
kernel and 2.5 ms replayed (default model, H200). A graph holds for one batch size, so passes are captured for a few
sizes and a batch that lies between takes the next larger one, its extra rows ignored.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convlens.instrument import ReluRule, RuledRelus, float32_flags
from convlens.runtime.memory import MAYBE_OUT_OF_MEMORY, free_gpu_cache, is_out_of_memory

__all__ = ["CapturedPass", "CapturedPasses", "capture", "captured_passes"]

Result = TypeVar("Result")

# x (N, C, H, W) -> logits (N, K), embeddings (N, D)
Network = Callable[[Tensor], tuple[Tensor, Tensor]]

# Each holds the activations of its batch size on the device for as long as it is kept.
MOST_CAPTURED = 8
# Two runs let libraries choose and compile their kernels, which they may not do while a graph is captured.
_WARM_UPS = 2

_log = logging.getLogger(__name__)


class CapturedPass:
    """The passes of one batch size. Not safe to use from several threads: ``CapturedPasses`` takes care of that.

    Raises RuntimeError where the network does what no graph can hold, such as reading a value back to the host.
    """

    def __init__(self, network: Network, example_NCHW: Tensor, classes: int) -> None:
        self._network = network
        self._pool = torch.cuda.graph_pool_handle()
        # Contiguous: gradients took 17 to 39 % less time so than channels last (ResNet-18, ResNet-50, batch 64, H200).
        self._x_NCHW = example_NCHW.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        self._weight_NK = torch.zeros(len(example_NCHW), classes, dtype=example_NCHW.dtype, device=example_NCHW.device)
        self._forward: tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]] | None = None
        self._recorded: tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]] | None = None
        self._backward: dict[ReluRule, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._rules = RuledRelus()
        self._owner: object = None
        self.relu_calls = 0

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and embeddings (N, D) on the device, of at most as many rows as were captured."""
        if self._forward is None:
            self._forward = self._captured(torch.no_grad()(lambda: self._network(self._x_NCHW)))
        graph, outputs = self._forward
        self._fill(x_NCHW, owner=None)
        graph.replay()
        return _rows(outputs, len(x_NCHW))

    def record(self, x_NCHW: Tensor, *, owner: object) -> tuple[Tensor, Tensor]:
        """As ``forward``, with what the backward passes need kept until another batch comes."""
        if self._recorded is None:
            self._recorded = self._captured(self._recorded_forward)
        graph, outputs = self._recorded
        self._fill(x_NCHW, owner=owner)
        graph.replay()
        return _rows((outputs[0].detach(), outputs[1].detach()), len(x_NCHW))

    def gradient(self, rule: ReluRule, x_NCHW: Tensor, rows: Tensor, targets: Tensor, *, owner: object) -> Tensor:
        """d logit of each row's target / d x, (len(rows), C, H, W); ``rows`` names none twice."""
        if self._owner is not owner:
            self.record(x_NCHW, owner=owner)
        graph, gradient_NCHW = self._backward_of(rule)
        self._weight_NK.zero_()
        self._weight_NK[rows, targets] = 1.0
        graph.replay()
        return gradient_NCHW[rows]

    @property
    def recorded_logits_NK(self) -> Tensor:
        """The logits that the backward passes start from, with their autograd graph; recorded before."""
        assert self._recorded is not None, "read before a forward pass was recorded"
        return self._recorded[1][0]

    def _backward_of(self, rule: ReluRule) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if rule not in self._backward:
            logits_NK = self.recorded_logits_NK

            def backward() -> Tensor:
                self._rules.set(rule)
                # Rows that are not asked for have weight 0, and no row's logits depend on another row.
                with torch.enable_grad():
                    score = (logits_NK * self._weight_NK).sum()
                return torch.autograd.grad(score, self._x_NCHW, retain_graph=True)[0]

            self._backward[rule] = self._captured(backward)
        return self._backward[rule]

    def _recorded_forward(self) -> tuple[Tensor, Tensor]:
        self._rules.calls = 0
        with torch.enable_grad(), self._rules:
            outputs = self._network(self._x_NCHW)
        self.relu_calls = self._rules.calls
        return outputs

    def _fill(self, x_NCHW: Tensor, *, owner: object) -> None:
        self._owner = owner
        self._x_NCHW.data[: len(x_NCHW)].copy_(x_NCHW, non_blocking=True)

    def _captured(self, action: Callable[[], Any]) -> Any:
        return capture(action, pool=self._pool)


def capture(action: Callable[[], Result], *, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    """What ``action`` does on the device as a graph, and the tensors that each replay fills.

    RuntimeError where it does what no graph can hold.
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            action()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads may go on allocating while this one captures.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        outputs = action()
    return graph, outputs


class CapturedPasses:
    """The captured passes of one network, for the batch sizes that come again; safe to use from several threads.

    A size is captured when it is met for the second time, or beforehand by ``capture``. Where the network cannot be
    captured, or less than half of the memory is free, ``find`` gives None and the caller launches its kernels.
    """

    def __init__(self, network: Network, classes: int) -> None:
        self._network, self._classes = network, classes
        self._passes: OrderedDict[tuple[Hashable, int], CapturedPass] = OrderedDict()
        self._met: Counter[tuple[Hashable, int]] = Counter()
        self._impossible = False
        self.lock = threading.RLock()

    def find(self, x_NCHW: Tensor) -> CapturedPass | None:
        """The smallest captured batch that holds these rows and is not twice as large; to be used under ``lock``."""
        kind, rows = _kind(x_NCHW), len(x_NCHW)
        sizes = [size for (other, size) in self._passes if other == kind and rows <= size < 2 * rows]
        if sizes:
            self._passes.move_to_end((kind, min(sizes)))
            return self._passes[kind, min(sizes)]
        self._met[kind, rows] += 1
        return self.capture(x_NCHW) if self._met[kind, rows] > 1 else None

    def capture(self, example_NCHW: Tensor) -> CapturedPass | None:
        """The passes of the example's batch size, captured where they are not yet."""
        key = _kind(example_NCHW), len(example_NCHW)
        with self.lock:
            if self._impossible or key in self._passes or not _has_room(example_NCHW.device):
                return self._passes.get(key)
            try:
                made = CapturedPass(self._network, example_NCHW, self._classes)
                made.forward(example_NCHW)
                made.record(example_NCHW, owner=None)
            except MAYBE_OUT_OF_MEMORY as error:
                self._give_up(error)
                return None
            self._passes[key] = made
            while len(self._passes) > MOST_CAPTURED:
                self._passes.popitem(last=False)
            return made

    def _give_up(self, error: Exception) -> None:
        if is_out_of_memory(error):
            self._passes.clear()
            free_gpu_cache()
        else:
            self._impossible = True
            _log.warning("this network's passes cannot be captured as CUDA graphs and are launched anew: %s", error)


_CAPTURED: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, CapturedPasses]] = weakref.WeakKeyDictionary()
_CAPTURED_LOCK = threading.Lock()


def captured_passes(module: nn.Module, make: Callable[[], CapturedPasses]) -> CapturedPasses | None:
    """Those of this module, made when first asked for, and made anew when its weights have moved.

    None for a module with hooks, which a replayed graph would not call.
    """
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return None
    state = _state(module)
    with _CAPTURED_LOCK:
        known = _CAPTURED.get(module)
        if known is None or known[0] != state:
            known = _CAPTURED[module] = state, make()
        return known[1]


def _state(module: nn.Module) -> Hashable:
    """Where a module's tensors lie and how its arithmetic is done: what a captured graph takes for granted."""
    tensors = [*module.parameters(), *module.buffers()]
    return (
        *float32_flags(),
        torch.backends.cudnn.deterministic,
        *((tensor.data_ptr(), tensor.dtype) for tensor in tensors),
    )


def _has_room(device: torch.device) -> bool:
    """Whether half of the GPU's memory is free: captured passes hold theirs, and others need some, too."""
    free, total = torch.cuda.mem_get_info(device)
    return free > total / 2


def _kind(x_NCHW: Tensor) -> Hashable:
    return tuple(x_NCHW.shape[1:]), x_NCHW.dtype


def _rows(outputs: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Copies: the next replay overwrites what the graph gave."""
    logits_NK, embedding_ND = outputs
    return logits_NK[:count].clone(), embedding_ND[:count].clone()
