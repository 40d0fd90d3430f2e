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

__version__ = "0.1.0"

if TYPE_CHECKING:
    from convlens import explain, gallery, image, inspection, models, visualization
    from convlens import inspection as inside
    from convlens import visualization as colour
    from convlens.acceleration import accelerate
    from convlens.client import Client, GrpcClient
    from convlens.errors import ConvLensError
    from convlens.evaluation.evaluate import evaluate
    from convlens.explain import ForwardPass, run
    from convlens.explain import available_methods as methods
    from convlens.models import load, wrap

_HOMES = {
    "Client": "convlens.client",
    "ConvLensError": "convlens.errors",
    "ForwardPass": "convlens.explain",
    "GrpcClient": "convlens.client",
    "accelerate": "convlens.acceleration",
    "evaluate": "convlens.evaluation.evaluate",
    "load": "convlens.models",
    "run": "convlens.explain",
    "wrap": "convlens.models",
}
_PARTS = ("explain", "gallery", "image", "inspection", "models", "visualization")
_EARLIER_NAMES = {"colour": "visualization", "inside": "inspection"}

__all__ = [
    "Client",
    "ConvLensError",
    "ForwardPass",
    "GrpcClient",
    "accelerate",
    "colour",
    "evaluate",
    "explain",
    "gallery",
    "image",
    "inside",
    "inspection",
    "load",
    "methods",
    "models",
    "run",
    "visualization",
    "wrap",
]


def __getattr__(name: str) -> Any:
    name = _EARLIER_NAMES.get(name, name)
    if name in _PARTS:
        return importlib.import_module(f"convlens.{name}")
    if name == "methods":  # ``convlens.explain.methods`` is the folder of their files
        return importlib.import_module("convlens.explain").available_methods
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'convlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*__all__, "__version__"))
