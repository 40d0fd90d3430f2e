"""ONNX graphs that prove themselves: each carries its contract and is compared with torch before it gets its name.

    from export import export
    export(convlens.load("torchvision:resnet50"), "scores", "resnet50.onnx")

``convlens export --help``, or ``python -m export --help``, is the same as a command. Lazy (PEP 562): importing this
package imports neither torch nor onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.exporter import ExportReport, export

__all__ = ["ExportReport", "export"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("export.exporter"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
