"""Any CNN classifier by name: ``load("torchvision:resnet50")``, its spec, and how to put it into an archive.

Lazy (PEP 562): ``find_class`` needs no torch, and importing one part loads no other.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.models.classifier import Classifier, choose_device
    from convlens.models.labels import find_class
    from convlens.models.loader import DEFAULT, listing, load
    from convlens.models.model_id import ModelName
    from convlens.models.network import is_scripted
    from convlens.models.package import pack, unpack
    from convlens.models.weights import weights_sha256
    from convlens.models.wrapping import wrap

# No home may be called what it holds: importing `models/load.py` would bind the module to `models.load`.
_HOMES = {
    "Classifier": "classifier",
    "choose_device": "classifier",
    "weights_sha256": "weights",
    "find_class": "labels",
    "DEFAULT": "loader",
    "is_scripted": "network",
    "listing": "loader",
    "load": "loader",
    "ModelName": "model_id",
    "pack": "package",
    "unpack": "package",
    "wrap": "wrapping",
}

__all__ = [
    "DEFAULT",
    "Classifier",
    "ModelName",
    "choose_device",
    "find_class",
    "is_scripted",
    "listing",
    "load",
    "pack",
    "unpack",
    "weights_sha256",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
