"""``timm:NAME``, ``timm:NAME.TAG``, ``timm:NAME:untrained``: the networks of pytorch-image-models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants
from timm.data.config import resolve_model_data_config
from torch import nn

from convlens.errors import ModelError, near_matches
from convlens.models.checkpoints import load_weights
from convlens.models.labels import imagenet_labels
from convlens.models.model_id import (
    UNTRAINED,
    ModelId,
    ModelName,
    ModelOptions,
    input_channels,
    is_pretrained,
    split_variant,
)
from convlens.models.preprocessing import Preprocessing, parse_crop_mode, parse_interpolation, require_normalisation
from convlens.models.sources import Source, SourceModel, model_source
from convlens.models.weights import seeded

_CACHED_FILES = ("model.safetensors", "pytorch_model.bin")
# timm's modules whose networks mix positions by attention, MLPs, state spaces or recurrence, alone or after
# convolutions. By hand: timm's metadata names a network's module, but not what it is made of.
_NOT_CONVOLUTIONAL = (
    *("beit", "byoanet", "cait", "coat", "convit", "cpubone", "crossvit", "csatv2", "davit", "deepseek_vit", "deit"),
    *("edgenext", "efficientformer", "efficientformer_v2", "efficientvim", "efficientvit_mit", "efficientvit_msra"),
    *("eva", "fastvit", "gcvit", "gemma4_vit", "hiera", "hieradet_sam2", "iformer", "levit", "lowformer", "maxxvit"),
    *("mlp_mixer", "mobilenetv5", "mobilevit", "mvitv2", "naflexvit", "nest", "nextvit", "pit", "pvt_v2", "qwen3_vit"),
    *("sequencer", "shvit", "swiftformer", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr"),
    *("tiny_vit", "tnt", "twins", "visformer", "vision_transformer", "vision_transformer_hybrid"),
    *("vision_transformer_relpos", "vision_transformer_sam", "vitamin", "volo", "xcit"),
)
_ATTENTION_PREFIXES = ("caformer_", "mobilenetv4_hybrid_")  # in modules of convolutional networks


@model_source("timm")
class Timm(Source):
    """``timm:NAME.TAG``: TAG names the weights (``timm:resnet50.a1_in1k``); without it, timm's first choice.

    Images are prepared as timm's data config says, in its crop mode. With ``?weights=FILE`` or ``:untrained`` the
    network has as many classes as labels. ``?channels=6``, or as many means, makes one for images of six channels, of
    which timm spreads trained weights of a first layer.
    """

    def names(self) -> Iterable[ModelName]:
        cached = _cached()
        names = timm.list_models(pretrained=True)
        return [ModelName(f"timm:{name}", name in cached, _is_cnn_classifier(name)) for name in names]

    def load(self, model_id: ModelId, options: ModelOptions) -> SourceModel:
        module = self._module(model_id, options)
        classes = getattr(module, "num_classes", 0)
        if not classes:
            raise ModelError(
                f"{model_id.text!r} has no classes: timm has it for its features only; give weights=FILE and "
                "labels=FILE"
            )
        # timm carries no class names; 1,000 classes are ImageNet's, in their usual order.
        preprocessing = _preprocessing(module, options, input_channels(model_id))
        return SourceModel(module, preprocessing, imagenet_labels() if classes == 1000 else None)

    def architecture(self, model_id: ModelId, classes: int) -> nn.Module:
        model, variant = split_variant(model_id)
        _check_model(model, variant)
        return _create(model, num_classes=classes, channels=input_channels(model_id))

    def pack_architecture(self, model_id: ModelId, folder: Path) -> str:
        channels = input_channels(model_id)
        return f"timm:{split_variant(model_id)[0]}:{UNTRAINED}" + (f"?channels={channels}" if channels else "")

    def _module(self, model_id: ModelId, options: ModelOptions) -> nn.Module:
        model, variant = split_variant(model_id)
        _check_model(model, variant)
        if is_pretrained(model_id, options):
            return _pretrained(model, input_channels(model_id))
        classes = len(options.labels) if options.labels else None
        module = _create(model, num_classes=classes, channels=input_channels(model_id))
        if options.weights is not None:
            load_weights(module, options.weights, key=options.weights_key)
        return module


def _is_cnn_classifier(name: str) -> bool:
    """Whether timm's registry and config describe a convolutional network with classes; nothing is built."""
    if name.startswith(_ATTENTION_PREFIXES) or timm.models.is_model_in_modules(name, _NOT_CONVOLUTIONAL):
        return False
    config = timm.get_pretrained_cfg(name)
    return config is None or config.num_classes > 0


def _check_model(model: str, variant: str) -> None:
    if variant not in ("", UNTRAINED):
        raise ModelError(f"timm:{model}:{variant} should read timm:{model}.TAG or timm:{model}:{UNTRAINED}")
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise ModelError(
            f"timm has no model {architecture!r}{near_matches(architecture, known)}; `convlens models` lists them all"
        )
    tags = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ModelError(
            f"timm:{architecture} has no weights {tag!r}; there are: "
            f"{', '.join(tags) or 'none'}{near_matches(tag, tags)}"
        )


def _create(model: str, *, num_classes: int | None = None, channels: int | None = None) -> nn.Module:
    with seeded():
        module: nn.Module = timm.create_model(model, pretrained=False, num_classes=num_classes, in_chans=channels)
    return module


def _pretrained(model: str, channels: int | None) -> nn.Module:
    if not timm.models.is_model_pretrained(model):
        raise ModelError(
            f"timm has no weights for {model!r}; use timm:{model}?weights=FILE or timm:{model}:{UNTRAINED}"
        )
    try:
        with seeded():
            module: nn.Module = timm.create_model(model, pretrained=True, in_chans=channels)
    except (OSError, RuntimeError) as error:  # huggingface_hub's own errors are OSErrors
        config = timm.get_pretrained_cfg(model)
        location = (config.hf_hub_id or config.url) if config else model
        raise ModelError(
            f"the weights of timm:{model} could not be downloaded: {error} They are at {location}. "
            f"Fetch them elsewhere and use timm:{model}?weights=FILE, or timm:{model}:{UNTRAINED}"
        ) from error
    return module


def _preprocessing(module: nn.Module, options: ModelOptions, channels: int | None) -> Preprocessing:
    config: Any = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    own_channels, height, width = config["input_size"]
    channels = channels or own_channels
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if len(mean) != channels:
        mean, std = require_normalisation(options, channels)
    # As timm's own evaluation does it.
    resize_height, resize_width = (math.floor(side / config["crop_pct"]) for side in (height, width))
    return Preprocessing(
        height,
        resize_height,
        parse_interpolation(config["interpolation"]),
        mean,
        std,
        parse_crop_mode(config["crop_mode"] or "center"),
        None if width == height else width,
        None if resize_width == resize_height else resize_width,
    )


def _cached() -> set[str]:
    """Names whose weights lie in the hub's cache, which has one folder ``models--timm--NAME.TAG`` for each."""
    snapshots = Path(constants.HF_HUB_CACHE).glob("models--timm--*/snapshots/*/*")
    return {file.parents[2].name.removeprefix("models--timm--") for file in snapshots if file.name in _CACHED_FILES}
