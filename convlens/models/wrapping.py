"""A module in memory as a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from convlens.errors import ModelError
from convlens.instrument import require_precision
from convlens.models.classifier import Classifier, choose_device
from convlens.models.layer_discovery import OutputOptions
from convlens.models.loader import describe
from convlens.models.model_id import MEMORY, UNREPEATABLE
from convlens.models.network import private_copy, require_computable, unwrapped
from convlens.models.preprocessing import IMAGENET, Preprocessing, parse_crop_mode, parse_interpolation
from convlens.types import Activation, ArithmeticPrecision


def wrap(
    module: nn.Module,
    *,
    size: int | tuple[int, int] = 224,
    resize: int | tuple[int, int] | None = None,
    crop_mode: str = "center",
    interpolation: str = "bilinear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    display_channels: Sequence[int] = (),
    labels: Sequence[str] | None = None,
    output: str | int | None = None,
    activation: Activation | None = None,
    features: bool | None = None,
    embedding_layer: str | None = None,
    gradcam_layer: str | None = None,
    unrepeatable: str = "refuse",
    name: str | None = None,
    device: str | torch.device | None = None,
    precision: ArithmeticPrecision | None = None,
) -> Classifier:
    """Any module as a classifier, for all that takes one; the module itself stays as it is, weights are shared.

    So results follow its training, but ``spec.weights_sha256`` does not: wrap it again afterwards.

    ``size`` and ``resize`` are in pixels, a side or (height, width); without ``resize`` an image is resized to the
    size itself. ``mean`` and ``std`` are per channel on the 0..1 scale, ImageNet's for three channels, and must be
    given for any other number. ``output`` names the logits among several outputs, ``activation`` what makes
    probabilities of them; ``features=True`` says that the output is an embedding, and that there are no classes. The
    layers are found as for named models. Weights of another width than float32 are computed in float32.
    ``unrepeatable="allow"`` takes networks whose answers depend on chance or on the rest of the batch, with a warning
    in every result. ``device``: by default where the module's weights are.

    A network wrapped in DataParallel, torch.compile or an average of weights is taken out of it. Raises ModelError as
    ``load`` does.
    """
    require_precision(precision)
    if unrepeatable not in UNREPEATABLE:
        raise ModelError(f"unrepeatable={unrepeatable!r} is not known; there are: {', '.join(UNREPEATABLE)}")
    inner = unwrapped(module)
    require_computable(inner)
    chosen = choose_device(device if device is not None else _device_of(inner))
    height, width = _pair(size)
    private = private_copy(inner)
    mean, std = _normalisation(private, mean, std, (height, width))
    resize_height, resize_width = (height, width) if resize is None else _pair(resize)
    preprocessing = Preprocessing(
        height,
        resize_height,
        parse_interpolation(interpolation),
        mean,
        std,
        parse_crop_mode(crop_mode),
        None if width == height else width,
        None if resize_width == resize_height else resize_width,
        tuple(display_channels),
    )
    title = f"{MEMORY}:{name or type(inner).__name__}"
    options = OutputOptions(output, activation, features, embedding_layer, gradcam_layer)
    try:
        private, spec = describe(
            title,
            private,
            preprocessing,
            tuple(labels) if labels is not None else None,
            options,
            unrepeatable,
        )
    except ModelError as error:
        raise ModelError(f"{title}: {error.message}") from error
    return Classifier(private.to(chosen), spec, chosen, title, precision=precision)


def _device_of(module: nn.Module) -> torch.device:
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


def _pair(sides: int | tuple[int, int]) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


def _normalisation(
    module: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, size: tuple[int, int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel, ImageNet's where nothing is given for three."""
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    channels = first.in_channels if first else 3
    if mean is None and std is None and (channels == 3 or _takes_rgb(module, size)):
        return IMAGENET.mean, IMAGENET.std
    if not mean or not std or len(mean) != len(std) or min(std) <= 0:
        raise ModelError(
            f"the network takes {channels} channels; give mean= and std= of as many numbers, on the 0..1 scale, each "
            "std above 0"
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def _takes_rgb(module: nn.Module, size: tuple[int, int]) -> bool:
    """Whether three channels pass although the first convolution takes others (some rearrange pixels before it)."""
    try:
        with torch.no_grad():
            module(torch.zeros(2, 3, *size))
    except (RuntimeError, ValueError, TypeError, AssertionError):
        return False
    return True
