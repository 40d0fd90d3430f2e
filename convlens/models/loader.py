"""From a model's name to a classifier."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from convlens.errors import ModelError, near_matches
from convlens.instrument import require_precision
from convlens.models.classifier import Classifier, choose_device
from convlens.models.head import BOTH_SIGNS, adapted
from convlens.models.layer_discovery import DiscoveredLayers, OutputOptions, discover_layers
from convlens.models.model_id import ModelId, ModelName, ModelOptions, parse_model_id, parse_options
from convlens.models.network import for_inference
from convlens.models.preprocessing import Preprocessing
from convlens.models.repeatability import ALLOWED, check_repeatable
from convlens.models.sources import find_source, source_names
from convlens.models.weights import weights_sha256
from convlens.types import ArithmeticPrecision, ModelSpec

DEFAULT = "packaged:efficientnet_lite0"


def load(
    name: str = DEFAULT, *, device: str | torch.device = "auto", precision: ArithmeticPrecision | None = None
) -> Classifier:
    """Load the classifier of that name: ``packaged:…``, ``torchvision:NAME[:WEIGHTS]``, ``timm:NAME``,
    ``file:PATH:FACTORY``.

    The classes in ``sources`` say which variants there are, ``ModelOptions`` what may follow a ``?``. ``file:`` runs
    that file's code. ``precision``: "float32" is IEEE's on every device, "tf32" lets a GPU round to TF32, "half" sweeps
    in half where that is faster, and None does as torch's flags say. Raises ModelError for a name that is unknown or
    could mean two things, weights that do not fit or cannot be downloaded, a network that is no convolutional
    classifier, and a device that is not there.
    """
    require_precision(precision)
    chosen = choose_device(device)
    model_id = parse_model_id(name)
    if not model_id.source:
        raise ModelError(_without_source(model_id))
    source, options = find_source(model_id.source), parse_options(model_id)
    model = source.load(model_id, options)
    module = for_inference(model.module)
    try:
        preprocessing = model.preprocessing.with_options(options)
        labels = options.labels or model.labels
        module, spec = describe(
            source.display_name(model_id), module, preprocessing, labels, _output_options(options), options.unrepeatable
        )
    except ModelError as error:
        raise ModelError(f"{name!r}: {error.message}") from error
    return Classifier(module.to(chosen), spec, chosen, name, precision=precision)


def _output_options(options: ModelOptions) -> OutputOptions:
    return OutputOptions(
        output=options.output,
        activation=options.activation,
        embedding_layer=options.embedding_layer,
        gradcam_layer=options.gradcam_layer,
    )


def listing(source: str | None = None) -> tuple[ModelName, ...]:
    """All names of one source, or of all of them; ``file:`` has none of its own.

    Includes networks that are not convolutional: their ``is_cnn_classifier`` is False. Raises ModelError for an unknown
    source.
    """
    sources = source_names() if source is None else (source,)
    return tuple(entry for each in sources for entry in find_source(each).names())


def describe(
    name: str,
    module: nn.Module,
    preprocessing: Preprocessing,
    labels: tuple[str, ...] | None,
    output: OutputOptions,
    unrepeatable: str = "refuse",
) -> tuple[nn.Module, ModelSpec]:
    """The network (in eval mode, on the CPU) with its head adapted to logits, and all that a caller must know of it.

    Raises ModelError for a network that is not convolutional, whose output is no row an image, whose labels are of
    another number than its classes, and, unless ``unrepeatable`` is "allow", whose answers depend on more than the
    image.
    """
    layers = discover_layers(module, preprocessing, output)
    module = adapted(module, layers.head)
    first_ND = _logits(module, layers)
    warnings = check_repeatable(module, layers.noise_NCHW, first_ND, allow=unrepeatable == ALLOWED)
    return module, ModelSpec(
        name=name,
        crop=preprocessing.crop,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        labels=_labels(layers, labels),
        embedding_layer=layers.embedding_layer,
        gradcam_layer=layers.gradcam_layer,
        first_convolution=layers.first_convolution,
        weights_sha256=weights_sha256(module),
        crop_mode=preprocessing.crop_mode,
        crop_width=preprocessing.crop_width,
        resize_width=preprocessing.resize_width,
        display_channels=preprocessing.display_channels,
        activation=layers.activation,
        head=layers.head,
        warnings=warnings,
    )


def _logits(module: nn.Module, layers: DiscoveredLayers) -> Tensor:
    """What the network gives for the images that its layers were discovered by."""
    if not layers.head:
        return cast(Tensor, layers.output)
    with torch.no_grad():
        logits_NK: Tensor = module(layers.noise_NCHW)
    return logits_NK


def _labels(layers: DiscoveredLayers, labels: tuple[str, ...] | None) -> tuple[str, ...]:
    if labels is None:
        return tuple(f"class {index}" for index in range(layers.classes))
    if BOTH_SIGNS in layers.head and len(labels) == 1:
        return f"not {labels[0]}", labels[0]
    if len(labels) != layers.classes:
        no_classes = "; a network that gives embeddings has none" if not layers.classes else ""
        raise ModelError(
            f"the network has {layers.classes} classes, but there are {len(labels)} labels; give labels=FILE with one "
            f"a class{no_classes}"
        )
    return labels


def _without_source(model_id: ModelId) -> str:
    """Why a name without a source is refused, with the corrected spellings."""
    # Not taken from the first source that has it: torchvision's and timm's resnet50 have other weights.
    everywhere = [entry.name for entry in listing()]
    matching = [full for full in everywhere if full.partition(":")[2].split(".")[0] == model_id.rest]
    if matching:
        corrected = dict.fromkeys(full.split(".")[0] for full in matching)
        return f"{model_id.text!r} does not say where the model comes from; write {' or '.join(corrected)}"
    models = dict.fromkeys(full.partition(":")[2] for full in everywhere)
    return (
        f"{model_id.text!r} does not say where the model comes from, and no source has it; "
        f"write SOURCE:NAME with a source of {', '.join(source_names())}{near_matches(model_id.rest, models)}"
    )
