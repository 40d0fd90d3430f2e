"""How many images a pass with gradients takes at a time on a CPU."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from convlens.instrument import WatchedConvolutions, in_format_of
from convlens.runtime.memory import MAPPED_BYTES

# On two CPU cores, a gradient for each of 16 images: 4, 8 and 16 at a time took 1.53, 1.49 and 2.14 s for the default
# model, 2.93, 2.79 and 2.94 for ResNet-18, 1.74, 1.60 and 1.70 for ResNet-50, 2.96, 2.81 and 2.78 for VGG-11.
_FEWEST, _MOST = 4, 8
# On one thread, beside others that do the same, 3 to 5 at a time took .91 of the time of 6 (default model): of a
# thread's memory malloc gives more back, which faulted 130,000 pages an image of an evaluation with 4, 400,000 with 6.
_BYTES_ALONE = 20 * 2**20


def cpu_gradient_batch(module: nn.Module, x_NCHW: Tensor) -> int:
    """As many images of that shape as leave every tensor of a pass below ``MAPPED_BYTES``, within 4 and 8.

    Where torch has one thread, below 20 MB.
    """
    sizes = _LARGEST_BYTES.setdefault(module, {})
    key = tuple(x_NCHW.shape[1:]), x_NCHW.dtype
    if key not in sizes:
        watched = WatchedConvolutions()
        with torch.no_grad(), watched:
            module(in_format_of(module, x_NCHW[:1]))
        sizes[key] = watched.largest_bytes
    limit = MAPPED_BYTES if torch.get_num_threads() > 1 else _BYTES_ALONE
    return min(_MOST, max(_FEWEST, limit // (sizes[key] + 1)))


# Of one image's pass, by its shape and type.
_LARGEST_BYTES: weakref.WeakKeyDictionary[nn.Module, dict[tuple[tuple[int, ...], torch.dtype], int]] = (
    weakref.WeakKeyDictionary()
)
