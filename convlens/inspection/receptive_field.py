"""The receptive fields of a layer's units: frozen, in pixels.

Receptive fields of every layer, from one run of the network on bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convlens.errors import RequestError, UnsupportedModelError
from convlens.inspection.receptive_bounds import ROWS, SEEN, is_marked, marked, of_picture
from convlens.inspection.receptive_rules import Bounding
from convlens.instrument import find_layer, private_tree, require_eval
from convlens.models import Classifier
from convlens.types import Floats, Ints

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Field:
    """What each unit of a layer looks at, in pixels of the picture that the network is fed, whatever the channel.

    ``picture`` is that picture's height and width, ``grid`` the layer's rows and columns of units; where a layer has
    lost its map (flattened, fully connected) it is (1, 1). ``reach_4YX`` and ``seen_4YX`` hold for each unit top, left,
    bottom and right, the last two exclusive: as if the picture went on beyond its border, and the pixels that count.
    """

    layer: str
    kind: str
    picture: tuple[int, int]
    reach_4YX: Ints
    seen_4YX: Ints

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.reach_4YX.shape[1:]
        return rows, columns

    def box(self, y: int, x: int) -> Box:
        """Top, left, bottom, right (the last two exclusive) of the unit's field, beyond the border where it pads.

        Of an ordinary convolutional layer all units' boxes have one size and equal distances: cut them from a padded
        picture. A unit behind a mean over the whole map, or fully connected, has the picture for a box. RequestError
        for a unit that is not in the grid.
        """
        return self._at(self.reach_4YX, y, x)

    def clipped(self, y: int, x: int) -> Box:
        """The smallest rectangle of the picture that holds every pixel which the unit depends on; (0, 0, 0, 0) if none.

        Mostly the box cut at the border. It is smaller where the last pixels fall between two steps of a stride, and no
        unit reads them. RequestError for a unit that is not in the grid.
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
        """Top and left of the first unit's box: negative where it begins in the padding."""
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


def receptive_fields(classifier: Classifier, size: int | tuple[int, int] | None = None) -> Mapping[str, Field]:
    """The field of every layer that gives a tensor made from the picture, in the order in which layers finish.

    ``size`` is the picture's side, or height and width; by default what the model is fed. A layer that runs several
    times keeps its last run (torchvision's ResNets share one ReLU within a block). Weights are not looked at. Raises
    UnsupportedModelError for a network with an operation whose fields are not known, RequestError for a size that the
    network cannot take.
    """
    height, width = _sides(classifier, size)
    recorder = _Recorder(classifier.module, (height, width))
    bounds = of_picture(len(classifier.spec.mean), height, width)
    try:
        with torch.no_grad(), recorder.bounding():
            recorder.module(marked(bounds))
    except UnsupportedModelError:
        raise
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError) as error:
        raise RequestError(
            f"{classifier.spec.name} failed on pictures of {height}×{width} pixels, in {recorder.where}: "
            f"{_first_line(error)}; its own size is {classifier.spec.crop}",
            field="size",
        ) from error
    return recorder.fields


def receptive_field(classifier: Classifier, layer: str, size: int | tuple[int, int] | None = None) -> Field:
    """The field of one layer; RequestError, with near matches, for a name that there is not or that has no field."""
    find_layer(classifier.module, layer)
    return field_of(receptive_fields(classifier, size), layer)


def field_of(fields: Mapping[str, Field], layer: str) -> Field:
    """One of the fields; RequestError for a layer that has none."""
    if layer not in fields:
        raise RequestError(
            f"layer {layer!r} has no receptive field: it does not run, or gives no tensor made from the picture; "
            "choose another",
            field="layer",
        )
    return fields[layer]


class _Recorder:
    """A private tree of the network that notes each layer's field as it finishes."""

    def __init__(self, module: nn.Module, picture: tuple[int, int]) -> None:
        require_eval(module)
        self.module = private_tree(module)
        self.fields: dict[str, Field] = {}
        self._picture = picture
        self._running: list[str] = []
        for name, layer in self.module.named_modules():
            if name and not isinstance(layer, torch.jit.ScriptModule):
                self._watch(name, layer)

    @contextmanager
    def bounding(self) -> Iterator[None]:
        with Bounding(lambda: self.where):
            yield

    @property
    def where(self) -> str:
        return f"layer {self._running[-1]!r}" if self._running else "the network itself"

    def _watch(self, name: str, layer: nn.Module) -> None:
        def begin(_: nn.Module, __: Any) -> None:
            self._running.append(name)

        def finish(_: nn.Module, __: Any, out: Any) -> None:
            self._running.pop()
            if isinstance(out, Tensor) and is_marked(out):
                # Last run, last place: the order is that of the calls that count.
                self.fields.pop(name, None)
                self.fields[name] = _field(name, type(layer).__name__, self._picture, out)

        layer.register_forward_pre_hook(begin)
        layer.register_forward_hook(finish)


def _field(name: str, kind: str, picture: tuple[int, int], bounds: Tensor) -> Field:
    # numpy, because on tensors every operation of ours would be one of the network's.
    sides_8YX = _over_channels(bounds.numpy())
    return Field(name, kind, picture, _boxes(sides_8YX[SEEN:]), _boxes(sides_8YX[:SEEN]))


def _over_channels(bounds: Floats) -> Floats:
    """(8, Y, X): the hull over the channels; over everything where there is no map."""
    if bounds.ndim != 4:
        # The batch comes first, be it with other axes in one: (N·Y·X, C). Nothing of the map is left: nor is its reach.
        around_8 = bounds.reshape(ROWS, -1).max(axis=1)
        return np.tile(around_8[:SEEN], 2)[:, None, None]
    return np.asarray(bounds.max(axis=3 if _channels_last(bounds) else 1))


def _channels_last(bounds: Floats) -> bool:
    """(N, H, W, C), as inside ConvNeXt: then bounds differ along axes 1 and 2, and not along the last.

    Along one axis alone they also differ where channels have seen different parts (branches, then a mean over places).
    """
    alike_1, alike_2, alike_3 = (bool((bounds.max(axis) == bounds.min(axis)).all()) for axis in (1, 2, 3))
    return alike_3 and bounds.shape[3] > 1 and not alike_1 and not alike_2


def _boxes(sides_4YX: Floats) -> Ints:
    """Top, left, bottom, right as whole numbers, all 0 where nothing is seen."""
    empty = np.isneginf(sides_4YX).any(axis=0)
    signs = np.array([-1, -1, 1, 1])[:, None, None]
    boxes_4YX: Ints = (np.where(empty, 0, sides_4YX) * signs).astype(np.int32)
    boxes_4YX.flags.writeable = False
    return boxes_4YX


def _sides(classifier: Classifier, size: int | tuple[int, int] | None) -> tuple[int, int]:
    height, width = size if isinstance(size, tuple) else (size or classifier.spec.crop,) * 2
    if min(height, width) < 1:
        raise RequestError(f"a picture of {height}×{width} pixels is none; use 1 or more", field="size")
    return height, width


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
