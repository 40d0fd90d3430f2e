"""An engine's settings, the same for all requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from convlens.errors import ModelError
from convlens.runtime.graph_contract import Precision


@dataclass(frozen=True)
class EngineOptions:
    """``default_methods`` answer a request that asks to be explained but names no method.

    ``max_cost`` bounds the work on one request in forward passes; ``max_seconds`` bounds what it is expected to take
    and what a whole batch may take; None for no such bound. What would exceed them is refused before it starts; a batch
    that takes a tenth longer all the same is stopped, so set it well below the time after which a server kills the
    worker. ``sweeps_at``: the name of the model entry that answers what has many windows or samples; this one then
    refuses that. ``precision`` is that of sweeps where the request names none. Raises ModelError for impossible values.
    """

    name: str = "convlens"
    version: str = "1.0"
    default_methods: tuple[str, ...] = ("saliency", "guided_backprop", "occlusion")
    max_cost: float = 2_000.0
    max_seconds: float | None = None  # TorchServe's responseTimeout kills a worker together with its whole batch
    sweeps_at: str = ""
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ModelError(f"no precision {self.precision!r}; there are: {', '.join(get_args(Precision))}")
        for name in ("max_cost", "max_seconds"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ModelError(f"{name}={limit} allows nothing; use more than 0")
