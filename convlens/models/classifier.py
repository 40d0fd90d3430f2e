"""A loaded model, and the device that it runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from convlens.errors import ModelError
from convlens.types import ArithmeticPrecision, ModelSpec

if TYPE_CHECKING:
    from convlens.runtime.graph_set import GraphSet


@dataclass(frozen=True)
class Classifier:
    """A network in eval mode, in float32, none of its parameters requiring a gradient.

    ``module`` maps normalised images (N, C, H, W) to logits (N, K). ``source`` is the full name that it was
    loaded by, local folders included (after ``unpack`` the name of its architecture alone); ``spec.name`` has no
    folders and may be shown to anybody. ``precision`` is what its passes multiply float32 in: None leaves torch's flags
    alone, which allow TF32 for convolutions on a GPU. ``graphs`` are exported from ``module`` as it is
    (``convlens.accelerate``), or None: what they can compute need not be computed by torch.
    """

    module: nn.Module
    spec: ModelSpec
    device: torch.device
    source: str
    precision: ArithmeticPrecision | None = None
    graphs: GraphSet | None = field(default=None, repr=False)


def choose_device(name: str | torch.device) -> torch.device:
    """The device meant by ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises ModelError for a device that is not there: there is no fall-back.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"no device {name!r}; there are: auto, cpu, cuda, cuda:N") from None
    if device.type == "cpu":
        return torch.device("cpu")  # cpu:1 is no other device
    if device.type != "cuda":
        raise ModelError(f"device {str(name)!r} is not supported; there are: auto, cpu, cuda, cuda:N")
    return _cuda(device)


def _cuda(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ModelError(f"device '{device}' was asked for, but torch finds no CUDA device here; use cpu or auto")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= count:
        raise ModelError(f"device '{device}' was asked for, but there are {count}: cuda:0..cuda:{count - 1}")
    return torch.device("cuda", index)
