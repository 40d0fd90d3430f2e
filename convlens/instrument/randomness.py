"""Random numbers that belong to one call, for library code that only knows torch's global generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = {torch.normal, torch.randn, torch.rand, torch.randint, torch.randperm, torch.bernoulli, torch.multinomial}


class own_randomness(TorchFunctionMode):  # noqa: N801 - reads as a function in a with statement
    """Inside this ``with``, draws of the calling thread come from a generator of their own, seeded by ``seed``.

    torch.manual_seed would reach into every other thread, and be reached into.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__()
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)
