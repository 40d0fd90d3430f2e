"""Pictures as an exported graph's inputs want them, and room for its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convlens.errors import RequestError
from convlens.runtime.contract import Port

Feed = Tensor | NDArray[Any]
_TORCH_TYPES = {"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8}


def fed(feed: Feed, port: Port, device: torch.device) -> Tensor:
    """The feed as the port wants it, on that device. Of casts only those between floats are meant."""
    # torch takes no array whose axes run backwards
    tensor = feed if isinstance(feed, Tensor) else torch.as_tensor(np.ascontiguousarray(feed).reshape(feed.shape))
    wanted = _TORCH_TYPES[port.dtype]
    fits = len(tensor.shape) == len(port.shape) and all(
        isinstance(want, str) or want == have for want, have in zip(port.shape, tensor.shape, strict=True)
    )
    castable = tensor.dtype == wanted or (tensor.dtype.is_floating_point and wanted.is_floating_point)
    if not (fits and castable):
        raise RequestError(
            f"{port.name} should be {port.dtype} of shape {port.shape}; "
            f"got {str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
        )
    return tensor.detach().to(device=device, dtype=wanted).contiguous()


def sizes(inputs: list[Tensor], ports: tuple[Port, ...]) -> dict[str, int]:
    """What the named dimensions come to in this run."""
    dims = [dim for port in ports for dim in port.shape]
    found = [size for tensor in inputs for size in tensor.shape]
    return {dim: size for dim, size in zip(dims, found, strict=True) if isinstance(dim, str)}


def empty(port: Port, size_of: Mapping[str, int], device: torch.device) -> Tensor:
    """Room for an output."""
    shape = [size_of[dim] if isinstance(dim, str) else dim for dim in port.shape]
    return torch.empty(shape, dtype=_TORCH_TYPES[port.dtype], device=device)


def place(tensor: Tensor, port: Port) -> tuple[str, int, Any, tuple[int, ...], int]:
    """Where the tensor lies, in the words of ONNX Runtime's bindings."""
    device_id = tensor.device.index or 0
    return tensor.device.type, device_id, np.dtype(port.dtype), tuple(tensor.shape), tensor.data_ptr()


def batches(x_NCHW: Feed, size: int) -> list[Feed]:
    """The pictures in parts of at most ``size``; RequestError for none."""
    if not len(x_NCHW):
        raise RequestError("no pictures were given; give one or more")
    return [x_NCHW[start : start + size] for start in range(0, len(x_NCHW), size)]
