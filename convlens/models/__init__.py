"""Any CNN classifier by name: ``load("torchvision:resnet50")``, its spec, and how to put it into an archive.

Lazy (PEP 562): ``find_class`` needs no torch, and importing one part loads no other.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.models.classifier import Classifier, choose_device
    from convlens.models.digest import weights_sha256
    from convlens.models.labels import find_class
    from convlens.models.loading import DEFAULT, listing, load
    from convlens.models.names import ModelName
    from convlens.models.packing import pack, unpack

# No home may be called what it holds: importing `models/load.py` would bind the module to `models.load`.
_HOMES = {
    "Classifier": "classifier",
    "choose_device": "classifier",
    "weights_sha256": "digest",
    "find_class": "labels",
    "DEFAULT": "loading",
    "listing": "loading",
    "load": "loading",
    "ModelName": "names",
    "pack": "packing",
    "unpack": "packing",
}

__all__ = [
    "DEFAULT",
    "Classifier",
    "ModelName",
    "choose_device",
    "find_class",
    "listing",
    "load",
    "pack",
    "unpack",
    "weights_sha256",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
