"""One channel's images: what maximises it, the patches that excite it most, and guided backprop of each."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convlens import image
from convlens.atlas.maximisation import ChannelMaximiser, MaximisationOptions
from convlens.errors import RequestError
from convlens.inspection.patch_sheet import crop, crop_gradient
from convlens.inspection.patches import Backprop, Patch, PatchGradients, read_unchanged
from convlens.models import Classifier, load
from convlens.types import ArithmeticPrecision, Bytes8, Floats, Neuron
from convlens.visualization import draw_gradient

_SIDE = 160  # pixels of the longest side of a crop as it is stored
_LOSSLESS = 32  # pixels: smaller crops are shown as squares, which JPEG would blur
_CACHED = 64  # images, which channels share


@dataclass(frozen=True)
class ChannelOptions:
    """``k`` patches of each channel, and what is drawn of each; ``seed`` is that of the maximised pictures."""

    k: int = 6
    backprop: Backprop = "guided"
    maximisation: MaximisationOptions = field(default_factory=MaximisationOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 100:
            raise RequestError(f"k={self.k} patches of a channel; use 1..100", field="k")

    def to_json(self) -> dict[str, Any]:
        """All of them by name."""
        return asdict(self)


@dataclass(frozen=True)
class ChannelTask:
    """A channel to draw. The boxes of ``patches`` are the crops; ``files`` holds their images' paths and sha256."""

    layer: str
    channel: int
    patches: tuple[Patch, ...]
    files: Mapping[str, tuple[Path, str]]


@dataclass(frozen=True)
class ChannelImages:
    """Encoded files by name, and the largest activation on each maximised picture, in the order of their numbers.

    The name of a gradient is empty where none reaches the patch, and there is no name at all where none was wanted.
    """

    files: Mapping[str, bytes]
    activations: tuple[float, ...]
    patch_files: tuple[str, ...]
    gradient_files: tuple[str, ...]
    picture_files: tuple[str, ...]


class ChannelPainter:
    """Draws channels, one after another; those of one layer share what is prepared for it.

    A channel's images do not depend on the channels before it.
    """

    def __init__(self, classifier: Classifier, options: ChannelOptions) -> None:
        self._classifier, self._options = classifier, options
        # Channels of one layer come together, so one layer's parts are kept.
        self._maximiser = functools.lru_cache(maxsize=1)(self._new_maximiser)
        self._gradients = functools.lru_cache(maxsize=1)(self._new_gradients)
        self._read = functools.lru_cache(maxsize=_CACHED)(functools.partial(read_unchanged, classifier))

    def __call__(self, task: ChannelTask) -> ChannelImages:
        """RequestError where an image has changed since it was found."""
        files: dict[str, bytes] = {}
        views, inputs = self._images(task)
        boxes = [patch.box for patch in task.patches]
        # The normalised mean is 0, which is what zero padding is to the network.
        padding = image.displayed_mean(self._classifier.spec)
        crops = [crop(view_HWC, box, fill=padding) for view_HWC, box in zip(views, boxes, strict=True)]
        patch_files = _add(files, "patch", crops)
        gradients = self._gradient_crops(task, inputs)
        names = iter(_add(files, "gradient", [draw_gradient(grad) for grad in gradients if grad.any()]))
        gradient_files = tuple(next(names) if grad.any() else "" for grad in gradients)
        pictures, activations = self._maximiser(task.layer).pictures(task.channel)
        picture_files = _add(files, "picture", pictures)
        return ChannelImages(files, tuple(activations), patch_files, gradient_files, picture_files)

    def require_gradients(self, layer: str) -> None:
        """UnsupportedModelError, at once, where the layer's units have no guided backprop."""
        if self._options.backprop == "none":
            return
        spec = self._classifier.spec
        black_CHW = np.zeros((spec.channels, *spec.input_size), np.float32)
        list(self._gradients(layer).each([Neuron(layer, 0)], [black_CHW]))

    def _images(self, task: ChannelTask) -> tuple[list[Bytes8], list[Floats]]:
        pairs = [self._read(*task.files[patch.image_id]) for patch in task.patches]
        return [view_HWC for view_HWC, _ in pairs], [x_CHW for _, x_CHW in pairs]

    def _gradient_crops(self, task: ChannelTask, inputs: Sequence[Floats]) -> list[Floats]:
        if self._options.backprop == "none":
            return []
        neurons = [patch.neuron for patch in task.patches]
        whole = self._gradients(task.layer).each(neurons, inputs)
        return [crop_gradient(grad, patch.box) for grad, patch in zip(whole, task.patches, strict=True)]

    def _new_maximiser(self, layer: str) -> ChannelMaximiser:
        return ChannelMaximiser(self._classifier, layer, self._options.maximisation, seed=self._options.seed)

    def _new_gradients(self, layer: str) -> PatchGradients:
        return PatchGradients(self._classifier, layer, backprop=self._options.backprop)


def open_painter(model: str, device: str, precision: ArithmeticPrecision, options: ChannelOptions) -> ChannelPainter:
    """A painter of the model of that name: for another process."""
    return ChannelPainter(load(model, device=device, precision=precision), options)


def _add(files: dict[str, bytes], stem: str, images: Sequence[Bytes8]) -> tuple[str, ...]:
    """Encode the images and put them among the files; their names."""
    names = []
    for number, image_HWC in enumerate(images, start=1):
        small_HWC = _reduced(image_HWC)
        lossless = max(small_HWC.shape[:2]) < _LOSSLESS
        name = f"{stem}-{number}.{'png' if lossless else 'jpg'}"
        files[name] = image.encode_png(small_HWC, level=9) if lossless else image.encode_jpeg(small_HWC, quality=88)
        names.append(name)
    return tuple(names)


def _reduced(image_HWC: Bytes8) -> Bytes8:
    longest = max(image_HWC.shape[:2])
    if longest <= _SIDE:
        return image_HWC
    height, width = (max(1, round(side * _SIDE / longest)) for side in image_HWC.shape[:2])
    return np.asarray(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.LANCZOS))
