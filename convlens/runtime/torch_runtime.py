"""Scores and embeddings of many images, in batches, by eager PyTorch; and the process's memory meanwhile."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convlens.instrument import arithmetic, fast_convolutions, memory_format, require_eval, tapped
from convlens.types import ArithmeticPrecision, Floats

# On two cores the cost per image is flat from batches of 4 to 32 where freed memory is kept. In a plain script larger
# ones return theirs to the kernel: 169 images of the default model took 1.9 s by eights and 2.9 s by 32.
_BATCH, CPU_BATCH = 16, 8


@dataclass(frozen=True)
class TorchRuntime:
    """Runs ``module`` without gradients. ``embedding_layer`` names the layer whose input is the embedding.

    ``precision`` is as for ``convlens.load``. Raises ModelError for a model in training mode.
    """

    module: nn.Module
    embedding_layer: str
    device: torch.device
    batch: int = _BATCH
    precision: ArithmeticPrecision | None = None
    name = "torch"

    def __post_init__(self) -> None:
        require_eval(self.module)

    def logits(self, x_NCHW: Tensor | Floats) -> Floats:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        # Not inference_mode: what a network keeps of this pass, a grid for this size of batch, say, would be of no use
        # to a later one with gradients.
        with torch.no_grad(), arithmetic(self.precision, self.device), fast_convolutions(self.device):
            parts = [self.module(part) for part in self._batches(x_NCHW)]
            return _numpy(torch.cat(parts))

    def logits_and_embeddings(self, x_NCHW: Tensor | Floats) -> tuple[Floats, Floats]:
        """Logits (N, K) and embeddings (N, D) from the same forward passes."""
        logits, embeddings = [], []
        with (
            torch.no_grad(),
            arithmetic(self.precision, self.device),
            fast_convolutions(self.device),
            tapped(self.module, inputs=[self.embedding_layer]) as tap,
        ):
            for part in self._batches(x_NCHW):
                logits.append(tap.module(part))
                embeddings.append(embedding(tap.inputs.get(self.embedding_layer), len(part)))
            return _numpy(torch.cat(logits)), _numpy(torch.cat(embeddings))

    def _batches(self, x_NCHW: Tensor | Floats) -> tuple[Tensor, ...]:
        batch = min(self.batch, CPU_BATCH) if self.device.type == "cpu" else self.batch
        return torch.split(as_input(x_NCHW, self.module, self.device), batch)


def as_input(x_NCHW: Tensor | Floats, module: nn.Module, device: torch.device) -> Tensor:
    """The images on that device, in the model's dtype and memory format."""
    weight = next(module.parameters(), None)  # a frozen scripted network has constants in their place
    dtype = torch.float32 if weight is None else weight.dtype
    return torch.as_tensor(x_NCHW).to(device=device, dtype=dtype, memory_format=memory_format(module))


def embedding(caught: Tensor | None, rows: int) -> Tensor:
    """The embeddings (N, D) of what was caught at the layer; D is 0 for a network without one."""
    return torch.empty(rows, 0) if caught is None else widened(pooled(caught))


def widened(x: Tensor) -> Tensor:
    """float32 in place of bfloat16, which layers under autocast give and numpy has not, and of half."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def pooled(features: Tensor) -> Tensor:
    """Features (N, D) as they are, maps (N, D, H, W) averaged over space."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def _numpy(x: Tensor) -> Floats:
    return np.asarray(x.detach().cpu().numpy())


def to_host(x: Tensor) -> Floats:
    """The values as a numpy array; from a GPU by one copy straight into its memory, which is pinned for that."""
    x = x.detach()
    if not x.is_cuda:
        return np.asarray(x.numpy())
    # Into pageable memory the same copy took 25 ms instead of .7 ms for 38 MB (H200): each page faults first.
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    pinned.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return np.asarray(pinned.numpy())


def keep_freed_memory() -> bool:
    """Let this process reuse big freed blocks instead of returning them to the kernel; True where that was possible.

    For processes that are ours (command line, worker), never on import.
    """
    # Activations of many megabytes are otherwise mapped, page-faulted and unmapped anew in every forward pass: on two
    # cores a batch of 16 of the default model took 12.8 ms an image without and 8.4 ms with this.
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library other than glibc
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))


def give_back_freed_memory() -> bool:
    """Return to the kernel what this process has freed, once, as after loading; True where that was possible."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))
