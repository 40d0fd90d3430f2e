"""``torchvision:NAME[:WEIGHTS]``: torchvision's classification networks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from convlens.errors import ModelError, near_matches
from convlens.models.checkpoints import load_weights
from convlens.models.model_id import UNTRAINED, ModelId, ModelName, ModelOptions, is_pretrained, split_variant
from convlens.models.preprocessing import Preprocessing, parse_interpolation
from convlens.models.sources import Source, SourceModel, model_source
from convlens.models.weights import seeded

_TRANSFORMERS = ("vit_", "swin_")
_NO_CLASSIFIER = "IMAGENET1K_FEATURES"  # VGG-16's, whose last layers are NaN
# The two with auxiliary heads, which serve training only. They are built as torchvision builds them for its own
# weights: the network itself turns ImageNet's normalisation into the one that it was trained with.
_WITH_HEADS: Mapping[str, Mapping[str, bool]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": False},
}
_KINDS = {  # by torchvision's packages
    "detection": "a detector, not a classifier",
    "optical_flow": "a network for optical flow, not a classifier",
    "quantization": "quantised (no gradient passes it)",
    "segmentation": "a segmentation network, not a classifier",
    "video": "a video network, which takes clips and not images",
}
_HEAD_PREFIXES = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's published checkpoints still have a dot where names may no longer have one (torchvision renames them too).
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


@model_source("torchvision")
class Torchvision(Source):
    """WEIGHTS is a member of the model's enum (``IMAGENET1K_V1``, ``DEFAULT``) or ``untrained``; without it,
    ``DEFAULT``.

    With ``?weights=FILE`` the member says how images are prepared, and the file's weights are used.
    """

    def names(self) -> Iterable[ModelName]:
        return [ModelName(f"torchvision:{model}", _file(_weights(model, "DEFAULT")).is_file()) for model in _models()]

    def load(self, model_id: ModelId, options: ModelOptions) -> SourceModel:
        model, variant = split_variant(model_id)
        _check_model(model)
        trained = _weights(model, "DEFAULT" if variant in ("", UNTRAINED) else variant)
        labels = tuple(trained.meta["categories"])
        return SourceModel(self._module(model_id, options, trained), _preprocessing(trained), labels)

    def architecture(self, model_id: ModelId, classes: int) -> nn.Module:
        model, _ = split_variant(model_id)
        _check_model(model)
        with seeded():
            module: nn.Module = torchvision.models.get_model(
                model, weights=None, num_classes=classes, **_WITH_HEADS.get(model, {})
            )
        return module

    def pack_architecture(self, model_id: ModelId, folder: Path) -> str:
        return f"torchvision:{split_variant(model_id)[0]}:{UNTRAINED}"

    def _module(self, model_id: ModelId, options: ModelOptions, trained: WeightsEnum) -> nn.Module:
        model, _ = split_variant(model_id)
        if is_pretrained(model_id, options):
            return _pretrained(model, trained)
        module = self.architecture(model_id, len(options.labels or trained.meta["categories"]))
        if options.weights is not None:
            load_weights(module, options.weights, key=options.weights_key, rename=partial(_renamed, model))
        return module


def _models() -> list[str]:
    plain = torchvision.models.list_models(module=torchvision.models)
    return [model for model in plain if not model.startswith(_TRANSFORMERS)]


def _check_model(model: str) -> None:
    known = _models()
    if model in known:
        return
    if model in torchvision.models.list_models():
        raise ModelError(f"torchvision:{model} is {_kind(model)}; ConvLens explains convolutional classifiers")
    raise ModelError(
        f"torchvision has no classifier {model!r}{near_matches(model, known)}; `convlens models` lists them all"
    )


def _kind(model: str) -> str:
    if model.startswith(_TRANSFORMERS):
        return "a transformer, not a convolutional network"
    package = torchvision.models.get_model_builder(model).__module__.split(".")[2]
    return _KINDS.get(package, f"a network for {package}, not a classifier of single images")


def _weights(model: str, member: str) -> WeightsEnum:
    enum = torchvision.models.get_model_weights(model)
    known = [weights.name for weights in enum if weights.name != _NO_CLASSIFIER]
    if member != "DEFAULT" and member not in known:
        choices = ", ".join([*known, "DEFAULT", UNTRAINED])
        raise ModelError(
            f"torchvision:{model} has no weights {member!r}; there are: {choices}{near_matches(member, known)}"
        )
    return enum[member]


def _file(trained: WeightsEnum) -> Path:
    """Where torch.hub keeps these weights, whether they are there or not."""
    return Path(torch.hub.get_dir(), "checkpoints", trained.url.rpartition("/")[2])


def _pretrained(model: str, trained: WeightsEnum) -> nn.Module:
    try:
        module: nn.Module = torchvision.models.get_model(model, weights=trained, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no room; or a file whose hash is wrong
        raise ModelError(
            f"the weights of torchvision:{model} ({trained.name}) could not be downloaded: {error}. They are at "
            f"{trained.url}, kept at {_file(trained)}. "
            f"Fetch them elsewhere and use torchvision:{model}?weights=FILE, or torchvision:{model}:{UNTRAINED}"
        ) from error
    _drop_heads(module)
    return module


def _drop_heads(module: nn.Module) -> None:
    """Remove Inception v3's auxiliary head, which never runs in eval mode; torchvision itself drops GoogLeNet's."""
    if getattr(module, "AuxLogits", None) is not None:
        module.aux_logits = False  # type: ignore[assignment]  # a plain bool, which nn.Module's stub does not foresee
        module.AuxLogits = None  # type: ignore[assignment]


def _renamed(model: str, name: str) -> str | None:
    """A checkpoint's name as the network has it today; None in an auxiliary head."""
    if model in _WITH_HEADS and name.startswith(_HEAD_PREFIXES):
        return None
    return _OLD_DENSENET.sub(r"\1\2", name) if model.startswith("densenet") else name


def _preprocessing(trained: WeightsEnum) -> Preprocessing:
    preset: Any = trained.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    interpolation = parse_interpolation(preset.interpolation.value)
    return Preprocessing(crop, resize, interpolation, tuple(preset.mean), tuple(preset.std))
