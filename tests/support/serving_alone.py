"""A program: everything a worker can be asked, in a process in which some modules cannot be imported.

``serving_alone.py FOLDER MODULE…`` prints the methods that it ran. Imports no test network: those need scikit-image.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

SHA = "0" * 64
_PROGRAMS = ("torchserve.container", "serving.handler", "rayserve.app", "rayserve.server", "cli.probe", "cli.query")


class Missing(MetaPathFinder):
    """As if these modules were not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main() -> None:
    folder, *names = sys.argv[1:]
    sys.meta_path.insert(0, Missing(names))
    for module in _PROGRAMS:
        importlib.import_module(f"convlens.{module}")
    for method in run_everything(Path(folder)):
        sys.stdout.write(f"{method}\n")


def run_everything(folder: Path) -> list[str]:
    """Names of the methods that ran, with a gallery in that folder."""
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn

    from convlens.engine.engine import Engine, EngineOptions
    from convlens.explain.registry import available_methods
    from convlens.gallery import GalleryEntry, write
    from convlens.models import Classifier
    from convlens.protocol.encoding import encode_response
    from convlens.protocol.params import parse_params
    from convlens.protocol.requests import ApiRequest, Request
    from convlens.types import ModelSpec, Reply

    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 6, 3), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    module.add_module("head", nn.Linear(6, 3))
    spec = ModelSpec(
        name="test:alone",
        crop=16,
        resize=16,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        labels=("one", "two", "three"),
        embedding_layer="head",
        gradcam_layer="relu",
        first_convolution="first",
        weights_sha256=SHA,
    )
    vectors_ND = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    entries = [GalleryEntry(f"p{n}", "label", b"\xff\xd8 picture") for n in range(len(vectors_ND))]
    gallery = write(
        folder / "gallery",
        vectors_ND=vectors_ND,
        entries=entries,
        weights_sha256=SHA,
        model="tiny",
        embedding_layer="head",
        feature_space="raw",
    )
    classifier = Classifier(module.eval(), spec, torch.device("cpu"), "test:alone")
    engine = Engine(classifier, gallery=gallery, options=EngineOptions(max_cost=10_000))
    pixels_HWC = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    options = {"occlusion": {"window": 8, "stride": 4}, "rise": {"masks": 100}}
    params = parse_params(
        {
            "methods": [{"method": name, "options": options.get(name, {})} for name in available_methods()],
            "output": ["array", "overlay", "heatmap"],
            "evaluate": ["deletion", "insertion"],
            "neighbours": 2,
        }
    )
    call = ApiRequest((Request(Image.fromarray(pixels_HWC), params),))
    (answer,) = engine.run(call.requests)
    if not isinstance(answer, Reply):
        raise answer
    encode_response(call, [answer])
    return [explanation.method for explanation in answer.explanations]


if __name__ == "__main__":
    main()
