"""A network cut short: no further than the layers that are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convlens.errors import RequestError
from convlens.instrument.modules import private_tree
from convlens.instrument.taps import tappable


class UpTo:
    """Call it with pictures (N, C, H, W), get what the named layers give, by name; what comes behind them is not run.

    A layer that runs several times (torchvision's ResNets share one ReLU within a block) counts by its last run: one
    row of ``example_NCHW`` goes through the whole network once, to see how often each layer runs. Gradients flow to
    the pictures as usual, also by the rules of ``RuledRelus``. Results may be kept: no in-place step of the network
    overwrites them. Hooks sit on a private tree that shares the weights. RequestError for an unknown layer, with near
    matches, for one that does not run, and for one that gives no tensor. Not to be called from two threads at once.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], example_NCHW: Tensor) -> None:
        self._tree = private_tree(module)
        self._layers = tuple(dict.fromkeys(layers))
        self._calls = dict.fromkeys(self._layers, 0)
        self._wanted: dict[str, int] = {}
        self._found: dict[str, Tensor] = {}
        for name in self._layers:
            tappable(self._tree, name).register_forward_hook(self._hook(name))
        self._count(example_NCHW[:1])

    def __call__(self, x_NCHW: Tensor) -> dict[str, Tensor]:
        self._calls = dict.fromkeys(self._layers, 0)
        self._found = {}
        with contextlib.suppress(_AllThereError):
            self._tree(x_NCHW)
        found, self._found = self._found, {}
        return found

    def _count(self, x_NCHW: Tensor) -> None:
        with torch.no_grad():
            self._tree(x_NCHW)
        for name, calls in self._calls.items():
            if calls == 0:
                raise RequestError(f"layer {name!r} exists but does not run; choose another", field="layer")
        self._wanted = self._calls

    def _hook(self, name: str) -> Any:
        def caught(_: nn.Module, __: Any, out: Any) -> None:
            self._calls[name] += 1
            if not isinstance(out, Tensor):
                raise RequestError(
                    f"layer {name!r} gives a {type(out).__name__} and no tensor; choose another", field="layer"
                )
            if not self._wanted or self._calls[name] != self._wanted[name]:
                return
            last = len(self._found) == len(self._layers) - 1
            # Nothing runs behind the last one that could write into it.
            self._found[name] = out if last else out.clone()
            if last:
                raise _AllThereError

        return caught


class _AllThereError(Exception):
    """Ends a forward pass that has given what was wanted."""
