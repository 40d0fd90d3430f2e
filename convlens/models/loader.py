"""The door: a name in, a classifier out."""

from __future__ import annotations

import torch
from torch import nn

from convlens.errors import ModelError, near_matches
from convlens.models.classifier import Classifier, choose_device
from convlens.models.layer_discovery import DiscoveredLayers, discover_layers
from convlens.models.model_id import ModelId, ModelName, parse, read_options
from convlens.models.preprocessing import Preprocessing, adjusted
from convlens.models.sources import find_source, source_names
from convlens.models.weights import weights_sha256
from convlens.types import ModelSpec

DEFAULT = "packaged:efficientnet_lite0"


def load(name: str = DEFAULT, *, device: str | torch.device = "auto") -> Classifier:
    """Loads the classifier of that name: ``packaged:…``, ``torchvision:NAME[:WEIGHTS]``, ``timm:NAME``,
    ``file:PATH:FACTORY``.

    The classes in ``sources`` say which variants there are, ``Options`` what may follow a ``?``. ``file:`` runs that
    file's code. Raises ModelError for a name that is unknown or could mean two things, weights that do not fit or
    cannot be had, a network that is no convolutional classifier, and a device that is not there.
    """
    placed = choose_device(device)
    parsed = parse(name)
    if not parsed.source:
        raise ModelError(_bare(parsed))
    source, options = find_source(parsed.source), read_options(parsed)
    draft = source.draft(parsed, options)
    module = for_inference(draft.module)
    try:
        spec = _spec(source.shown(parsed), module, adjusted(draft.feed, options), options.labels or draft.labels)
    except ModelError as error:
        raise ModelError(f"{name!r}: {error.message}") from error
    return Classifier(module.to(placed), spec, placed, name)


def listing(source: str | None = None) -> tuple[ModelName, ...]:
    """All names of one source, or of all of them; ``file:`` has none of its own.

    Includes networks that are not convolutional: their ``is_cnn_classifier`` is False. Raises ModelError for an unknown
    source.
    """
    wanted = source_names() if source is None else (source,)
    return tuple(entry for each in wanted for entry in find_source(each).names())


def for_inference(module: nn.Module) -> nn.Module:
    """The same module in eval mode, in float32, without gradients for its parameters."""
    return module.eval().float().requires_grad_(False)


def _spec(shown: str, module: nn.Module, feed: Preprocessing, labels: tuple[str, ...] | None) -> ModelSpec:
    found = discover_layers(module, feed)
    return ModelSpec(
        name=shown,
        crop=feed.crop,
        resize=feed.resize,
        interpolation=feed.interpolation,
        mean=feed.mean,
        std=feed.std,
        labels=_labels(found, labels),
        embedding_layer=found.embedding_layer,
        gradcam_layer=found.gradcam_layer,
        first_convolution=found.first_convolution,
        weights_sha256=weights_sha256(module),
    )


def _labels(found: DiscoveredLayers, labels: tuple[str, ...] | None) -> tuple[str, ...]:
    if labels is None:
        return tuple(f"class {index}" for index in range(found.classes))
    if len(labels) != found.classes:
        raise ModelError(
            f"the network has {found.classes} classes, but there are {len(labels)} labels; give labels=FILE with one "
            "a class"
        )
    return labels


def _bare(name: ModelId) -> str:
    """Why a name without a source is refused, with the corrected spellings."""
    everywhere = [entry.name for entry in listing()]
    spelled = [full for full in everywhere if full.partition(":")[2].split(".")[0] == name.rest]
    if spelled:
        heads = dict.fromkeys(full.split(".")[0] for full in spelled)
        return f"{name.text!r} does not say where the model comes from; write {' or '.join(heads)}"
    models = dict.fromkeys(full.partition(":")[2] for full in everywhere)
    return (
        f"{name.text!r} does not say where the model comes from, and no source has it; "
        f"write SOURCE:NAME with a source of {', '.join(source_names())}{near_matches(name.rest, models)}"
    )
