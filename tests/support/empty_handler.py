"""A handler that does nothing: what TorchServe's worker costs by itself."""

from __future__ import annotations

from typing import Any


class EmptyHandler:
    def initialize(self, context: Any) -> None:
        self.initialized = True

    def handle(self, data: list[Any], context: Any) -> list[str]:
        return ["{}" for _ in data]
