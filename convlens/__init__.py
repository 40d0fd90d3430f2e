"""ConvLens opens the black box of convolutional networks: predictions together with their explanations.

    import convlens

    classifier = convlens.load("torchvision:resnet50")
    picture = convlens.image.read("cat.jpg")
    x_CHW = convlens.image.prepare(picture, classifier.spec).x_CHW
    forward = convlens.ForwardPass(classifier, x_CHW[None])
    attribution = convlens.run("saliency", forward)

Lazy (PEP 562): a part is imported when first named, so that a serving worker never loads what it does not use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convlens.version import __version__ as __version__

if TYPE_CHECKING:
    from convlens import colour, explain, gallery, image, inside, models
    from convlens.client import Client, GrpcClient
    from convlens.errors import ConvLensError
    from convlens.explain import ForwardPass, methods, run
    from convlens.models import load

_HOMES = {
    "Client": "convlens.client",
    "ConvLensError": "convlens.errors",
    "ForwardPass": "convlens.explain",
    "GrpcClient": "convlens.client",
    "load": "convlens.models",
    "methods": "convlens.explain",
    "run": "convlens.explain",
}
_PARTS = ("colour", "explain", "gallery", "image", "inside", "models")

__all__ = [
    "Client",
    "ConvLensError",
    "ForwardPass",
    "GrpcClient",
    "colour",
    "explain",
    "gallery",
    "image",
    "inside",
    "load",
    "methods",
    "models",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"convlens.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'convlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*__all__, "__version__"))
