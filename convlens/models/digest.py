"""A fingerprint of a network's weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from convlens.errors import ModelError


def weights_sha256(module: nn.Module) -> str:
    """The sha256 over the state dict: for each entry, sorted by name, its name, type, shape and raw bytes.

    It does not depend on the device, on memory layout, or on the order of registration. Tensors are fed one by one, so
    no second copy of the weights is made on the CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(
                f"the state dict's entry {name!r} is a {type(tensor).__name__}; only tensors can be hashed and packed"
            )
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _raw(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes in row-major order, whatever its type (numpy has no bfloat16, so they are viewed as bytes
    first).
    """
    flat = tensor.detach().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data
