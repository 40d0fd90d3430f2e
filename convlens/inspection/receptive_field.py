"""Receptive fields of every layer, exact, from one run of the network on bounds in place of an image.

``receptive_bounds`` says what bounds are, ``receptive_rules`` how each operation carries them on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convlens.errors import RequestError, UnsupportedModelError
from convlens.inspection.receptive_bounds import ROWS, SEEN, image_bounds, is_marked, marked
from convlens.inspection.receptive_rules import BoundsMode
from convlens.instrument import find_layer, private_tree, require_eval
from convlens.models import Classifier
from convlens.types import Floats, Ints

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive fields of one layer's units, in pixels of the network's input; the same for every channel.

    ``image_size`` is that input's height and width, ``grid`` the layer's rows and columns of units, (1, 1) for a layer
    without a map (flattened, fully connected). ``reach_4YX`` and ``seen_4YX`` hold for each unit top, left, bottom and
    right, the last two exclusive: as if the image went on beyond its border, and within its pixels.
    """

    layer: str
    kind: str
    image_size: tuple[int, int]
    reach_4YX: Ints
    seen_4YX: Ints

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.reach_4YX.shape[1:]
        return rows, columns

    def box(self, y: int, x: int) -> Box:
        """Top, left, bottom, right (the last two exclusive) of the unit's field, beyond the border where it pads.

        In an ordinary convolutional layer all boxes have one size and lie at equal distances, so crops of a padded
        image fit them. A unit behind a mean over the whole map, or fully connected, has the whole image as its box.
        RequestError for a unit outside the grid.
        """
        return self._at(self.reach_4YX, y, x)

    def clipped(self, y: int, x: int) -> Box:
        """The smallest rectangle of pixels that holds everything the unit depends on; (0, 0, 0, 0) for nothing.

        Mostly the box cut at the border. It is smaller where the last pixels fall between two steps of a stride and no
        unit reads them. RequestError for a unit outside the grid.
        """
        return self._at(self.seen_4YX, y, x)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the largest box."""
        top, left, bottom, right = self.reach_4YX
        return int((bottom - top).max()), int((right - left).max())

    @property
    def uniform(self) -> bool:
        """Whether all boxes have one size."""
        top, left, bottom, right = self.reach_4YX
        return bool(((bottom - top) == self.size[0]).all() and ((right - left) == self.size[1]).all())

    @property
    def stride(self) -> tuple[int, int] | None:
        """Pixels from one unit's box to the next, down and across; None where that differs or there is no next one."""
        top, left = self.reach_4YX[:2]
        down, across = top[1:] - top[:-1], left[:, 1:] - left[:, :-1]
        if not down.size or not across.size or (down != down.flat[0]).any() or (across != across.flat[0]).any():
            return None
        return int(down.flat[0]), int(across.flat[0])

    @property
    def start(self) -> tuple[int, int]:
        """Top and left of the first unit's box; negative where it begins in the padding."""
        return int(self.reach_4YX[0, 0, 0]), int(self.reach_4YX[1, 0, 0])

    def _at(self, boxes_4YX: Ints, y: int, x: int) -> Box:
        rows, columns = self.grid
        if not (0 <= y < rows and 0 <= x < columns):
            raise RequestError(
                f"layer {self.layer!r} has no unit at row {y}, column {x}; there are rows 0..{rows - 1} "
                f"and columns 0..{columns - 1}",
                field="at",
            )
        top, left, bottom, right = (int(value) for value in boxes_4YX[:, y, x])
        return top, left, bottom, right


def receptive_fields(classifier: Classifier, size: int | tuple[int, int] | None = None) -> Mapping[str, ReceptiveField]:
    """The receptive field of every layer whose output is computed from the image, in the order in which layers finish.

    ``size`` is the image's side, or height and width; by default the model's crop. A layer that runs several times
    keeps its last run (torchvision's ResNets share one ReLU within a block). The values of weights play no part. Raises
    UnsupportedModelError for a network with an operation that has no rule, RequestError for a size that the network
    cannot take.
    """
    height, width = _image_size(classifier, size)
    recorder = _Recorder(classifier.module, (height, width))
    bounds = image_bounds(len(classifier.spec.mean), height, width)
    try:
        with torch.no_grad(), BoundsMode(lambda: recorder.where):
            recorder.module(marked(bounds))
    except UnsupportedModelError:
        raise
    # What torch and networks raise for shapes that do not fit.
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError) as error:
        raise RequestError(
            f"{classifier.spec.name} failed on images of {height}×{width} pixels, in {recorder.where}: "
            f"{str(error).strip().partition(chr(10))[0]}; its own size is {_sides(classifier.spec.input_size)}",
            field="size",
        ) from error
    return recorder.fields


def receptive_field(classifier: Classifier, layer: str, size: int | tuple[int, int] | None = None) -> ReceptiveField:
    """The receptive field of one layer; RequestError, with near matches, for an unknown layer or one without any."""
    find_layer(classifier.module, layer)
    return require_receptive_field(receptive_fields(classifier, size), layer)


def require_receptive_field(fields: Mapping[str, ReceptiveField], layer: str) -> ReceptiveField:
    """That layer's field; RequestError for a layer that has none."""
    if layer not in fields:
        raise RequestError(
            f"layer {layer!r} has no receptive field: it does not run, or its output is no tensor computed from the "
            "image; choose another",
            field="layer",
        )
    return fields[layer]


class _Recorder:
    """A private tree of the network that notes each layer's field as the layer finishes."""

    def __init__(self, module: nn.Module, image_size: tuple[int, int]) -> None:
        require_eval(module)
        self.module = private_tree(module)
        self.fields: dict[str, ReceptiveField] = {}
        self._image_size = image_size
        self._running: list[str] = []
        for name, layer in self.module.named_modules():
            # Scripted modules take no Python hooks.
            if name and not isinstance(layer, torch.jit.ScriptModule):
                self._watch(name, layer)

    @property
    def where(self) -> str:
        return f"layer {self._running[-1]!r}" if self._running else "the network itself"

    def _watch(self, name: str, layer: nn.Module) -> None:
        def begin(_: nn.Module, __: Any) -> None:
            self._running.append(name)

        def finish(_: nn.Module, __: Any, out: Any) -> None:
            self._running.pop()
            if isinstance(out, Tensor) and is_marked(out):
                # Removed first, so that the order is that of the last runs, which count.
                self.fields.pop(name, None)
                self.fields[name] = self._field(name, type(layer).__name__, out)

        layer.register_forward_pre_hook(begin)
        layer.register_forward_hook(finish)

    def _field(self, name: str, kind: str, bounds: Tensor) -> ReceptiveField:
        # numpy, because every operation on tensors would be taken for one of the network's.
        sides_8YX = _over_channels(bounds.numpy())
        return ReceptiveField(name, kind, self._image_size, _boxes(sides_8YX[SEEN:]), _boxes(sides_8YX[:SEEN]))


def _over_channels(bounds: Floats) -> Floats:
    """(8, Y, X): the hull over the channels; over everything where there is no map."""
    if bounds.ndim != 4:
        # The batch axis comes first, perhaps merged with others: (N·Y·X, C). Without a map there is no padding to
        # reach into, so the reach is what is seen.
        hull_8 = bounds.reshape(ROWS, -1).max(axis=1)
        return np.tile(hull_8[:SEEN], 2)[:, None, None]
    return np.asarray(bounds.max(axis=3 if _channels_last(bounds) else 1))


def _channels_last(bounds: Floats) -> bool:
    """Whether the axes are (N, H, W, C), as inside ConvNeXt: bounds differ along axes 1 and 2, but not along axis 3."""
    # Both axes must differ: along axis 1 alone bounds also differ in (N, C, H, W) where channels have seen different
    # parts, as after branches with a mean over places.
    alike_1, alike_2, alike_3 = (bool((bounds.max(axis) == bounds.min(axis)).all()) for axis in (1, 2, 3))
    return alike_3 and bounds.shape[3] > 1 and not alike_1 and not alike_2


def _boxes(sides_4YX: Floats) -> Ints:
    """Top, left, bottom, right as whole numbers, all 0 where nothing is seen."""
    empty = np.isneginf(sides_4YX).any(axis=0)
    signs = np.array([-1, -1, 1, 1])[:, None, None]
    boxes_4YX: Ints = (np.where(empty, 0, sides_4YX) * signs).astype(np.int32)
    boxes_4YX.flags.writeable = False
    return boxes_4YX


def _image_size(classifier: Classifier, size: int | tuple[int, int] | None) -> tuple[int, int]:
    height, width = size if isinstance(size, tuple) else (size, size) if size else classifier.spec.input_size
    if min(height, width) < 1:
        raise RequestError(f"an image of {height}×{width} pixels is empty; use 1 or more", field="size")
    return height, width


def _sides(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}×{size[1]}"
