"""``torchvision:NAME[:WEIGHTS]``: torchvision's classification networks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from convlens.errors import ModelError, near_matches
from convlens.models.model_id import UNTRAINED, ModelId, ModelName, ModelOptions, split_variant
from convlens.models.preprocessing import Preprocessing, interpolation
from convlens.models.sources import Draft, Source, model_source
from convlens.models.weights import apply_state_dict, read_state_dict, seeded

TRANSFORMERS = ("vit_", "swin_")
NO_CLASSIFIER = "IMAGENET1K_FEATURES"  # VGG-16's, whose last layers are NaN
# The two with heads that only train. They are built as torchvision builds them for its own weights: the network itself
# turns ImageNet's normalisation into the one that it was trained with.
WITH_HEADS: Mapping[str, Mapping[str, bool]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": False},
}
KINDS = {  # by torchvision's packages
    "detection": "a detector, not a classifier",
    "optical_flow": "a network for optical flow, not a classifier",
    "quantization": "quantised (no gradient passes it)",
    "segmentation": "a segmentation network, not a classifier",
    "video": "a video network, which takes clips and not pictures",
}
HEADS = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's published checkpoints still have a dot where names may no longer have one (torchvision renames them too).
OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


@model_source("torchvision")
class Torchvision(Source):
    """WEIGHTS is a member of the model's enum (``IMAGENET1K_V1``, ``DEFAULT``) or ``untrained``; without it,
    ``DEFAULT``.

    With ``?weights=FILE`` the member says how pictures are prepared, and the file's weights are used.
    """

    def names(self) -> Iterable[ModelName]:
        return [ModelName(f"torchvision:{model}", _cached(_weights(model, "DEFAULT"))) for model in _models()]

    def draft(self, name: ModelId, options: ModelOptions) -> Draft:
        model, variant = split_variant(name)
        _check_model(model)
        trained = _weights(model, "DEFAULT" if variant in ("", UNTRAINED) else variant)
        return Draft(self._module(name, options, trained), _feed(trained), tuple(trained.meta["categories"]))

    def skeleton(self, name: ModelId, classes: int) -> nn.Module:
        model, _ = split_variant(name)
        _check_model(model)
        with seeded():
            module: nn.Module = torchvision.models.get_model(
                model, weights=None, num_classes=classes, **WITH_HEADS.get(model, {})
            )
        return module

    def portable(self, name: ModelId, folder: Path) -> str:
        return f"torchvision:{split_variant(name)[0]}:{UNTRAINED}"

    def _module(self, name: ModelId, options: ModelOptions, trained: WeightsEnum) -> nn.Module:
        model, variant = split_variant(name)
        if options.weights is None and variant != UNTRAINED:
            return _pretrained(model, trained)
        if options.weights is not None and variant == UNTRAINED:
            raise ModelError(
                f"{name.text!r} asks for untrained weights and for weights={options.weights}; leave one out"
            )
        module = self.skeleton(name, len(options.labels or trained.meta["categories"]))
        if options.weights is not None:
            state = _renamed(model, read_state_dict(options.weights))
            apply_state_dict(module, state, origin=str(options.weights))
        return module


def _models() -> list[str]:
    plain = torchvision.models.list_models(module=torchvision.models)
    return [model for model in plain if not model.startswith(TRANSFORMERS)]


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
    if model.startswith(TRANSFORMERS):
        return "a transformer, not a convolutional network"
    package = torchvision.models.get_model_builder(model).__module__.split(".")[2]
    return KINDS.get(package, f"a network for {package}, not a classifier of single pictures")


def _weights(model: str, member: str) -> WeightsEnum:
    enum = torchvision.models.get_model_weights(model)
    known = [each.name for each in enum if each.name != NO_CLASSIFIER]
    if member != "DEFAULT" and member not in known:
        choices = ", ".join([*known, "DEFAULT", UNTRAINED])
        raise ModelError(
            f"torchvision:{model} has no weights {member!r}; there are: {choices}{near_matches(member, known)}"
        )
    return enum[member]


def _file(trained: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", trained.url.rpartition("/")[2])


def _cached(trained: WeightsEnum) -> bool:
    return _file(trained).is_file()


def _pretrained(model: str, trained: WeightsEnum) -> nn.Module:
    try:
        module: nn.Module = torchvision.models.get_model(model, weights=trained, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no room; or a file whose hash is wrong
        raise ModelError(
            f"the weights of torchvision:{model} ({trained.name}) could not be had: {error}. Wanted: {trained.url}, "
            f"kept at {_file(trained)}. "
            f"Fetch it elsewhere and use torchvision:{model}?weights=FILE, or torchvision:{model}:{UNTRAINED}"
        ) from error
    _drop_heads(module)
    return module


def _drop_heads(module: nn.Module) -> None:
    """Inception v3 keeps its training head (GoogLeNet's are dropped by torchvision); in eval mode it never runs."""
    if getattr(module, "AuxLogits", None) is not None:
        module.aux_logits = False  # type: ignore[assignment]  # a plain bool, which nn.Module's stub does not foresee
        module.AuxLogits = None  # type: ignore[assignment]


def _renamed(model: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's names as the network has them today, without the heads that only train."""
    kept = {key: tensor for key, tensor in state.items() if model not in WITH_HEADS or not key.startswith(HEADS)}
    if not model.startswith("densenet"):
        return kept
    return {OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in kept.items()}


def _feed(trained: WeightsEnum) -> Preprocessing:
    preset: Any = trained.transforms()
    word = interpolation(preset.interpolation.value)
    return Preprocessing(preset.crop_size[0], preset.resize_size[0], word, tuple(preset.mean), tuple(preset.std))
