"""The strongest places of each channel over any number of pictures, of which only the best are kept.

The parts of pictures that excite each channel of a layer most, over a whole folder (Zeiler & Fergus 2014).

A channel's patches as the lecture shows them: the crops, and below each what guided backprop makes of its neuron.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convlens import image
from convlens.errors import ModelError, RequestError
from convlens.explain.neurons import Unit
from convlens.features.loader import ImageReader, LoadedImage, UnreadableImage
from convlens.inspection.receptive_field import Box, Field, receptive_field
from convlens.instrument import PartialForward, find_layer, require_eval
from convlens.models import Classifier
from convlens.types import Bytes8, Floats, Ints, no_op
from convlens.utils.concurrency import batched, cores, ordered_map
from convlens.visualization import gradient_image
from convlens.visualization.layout import enlarge, hstack, vstack


@dataclass
class TopK:
    """For each of ``channels`` the ``k`` pictures where it was largest anywhere, and where in them.

    Pictures come in any batches, in order; a picture counts once a channel, by its largest value (the first place of
    equals, row by row). Of equal values the earlier picture stands first. ``value_CM`` falls along M; places that are
    not taken yet hold -inf and picture -1.
    """

    channels: int
    k: int
    seen: int = 0
    value_CM: Floats = field(init=False)
    picture_CM: Ints = field(init=False)
    y_CM: Ints = field(init=False)
    x_CM: Ints = field(init=False)

    def __post_init__(self) -> None:
        shape = self.channels, self.k
        self.value_CM = np.full(shape, -np.inf, np.float32)
        self.picture_CM, self.y_CM, self.x_CM = (np.full(shape, fill, np.int64) for fill in (-1, 0, 0))

    def add(self, maps_NCHW: Floats) -> None:
        """The layer's output for the next pictures."""
        count, channels, _, width = maps_NCHW.shape
        flat_NCP = maps_NCHW.reshape(count, channels, -1)
        at_NC = flat_NCP.argmax(axis=2)
        value_NC = np.take_along_axis(flat_NCP, at_NC[..., None], axis=2)[..., 0]
        picture_N1 = np.arange(self.seen, self.seen + count)[:, None]
        y_NC, x_NC = np.divmod(at_NC, width)
        self._merge(value_NC.T, np.broadcast_to(picture_N1, at_NC.shape).T, y_NC.T, x_NC.T)
        self.seen += count

    def _merge(self, value_CN: Floats, picture_CN: Ints, y_CN: Ints, x_CN: Ints) -> None:
        value_CA = np.concatenate([self.value_CM, value_CN], axis=1)
        # Stable, and earlier pictures stand before later ones: of equals the earlier one stays.
        order_CM = np.argsort(-value_CA, axis=1, kind="stable")[:, : self.k]
        kept = [(self.picture_CM, picture_CN), (self.y_CM, y_CN), (self.x_CM, x_CN)]
        self.value_CM = np.take_along_axis(value_CA, order_CM, axis=1)
        self.picture_CM, self.y_CM, self.x_CM = (
            np.take_along_axis(np.concatenate(pair, axis=1), order_CM, axis=1) for pair in kept
        )


BATCH = 16
OnPictures = Callable[[int, int], None]


@dataclass(frozen=True)
class Patch:
    """What one neuron saw when its channel was excited: ``value`` is its activation, ``rank`` starts at 1.

    ``box`` is its receptive field in pixels of the picture that the network was fed: top, left, bottom, right, the last
    two exclusive, beyond the picture where the network pads. ``picture`` is the file's id.
    """

    channel: int
    rank: int
    value: float
    picture: str
    unit: Unit
    box: Box


@dataclass(frozen=True)
class Patches:
    """Each channel's patches, strongest first, at most one a picture. ``unreadable`` holds (id, reason)."""

    model: str
    weights_sha256: str
    layer: str
    kind: str
    field: Field
    pictures: int
    by_channel: Mapping[int, tuple[Patch, ...]]
    unreadable: tuple[tuple[str, str], ...]
    files: Mapping[str, tuple[Path, str]]

    def read(self, patch: Patch, classifier: Classifier) -> tuple[Bytes8, Floats]:
        """The patch's picture once more: what the network saw (H, W, C), and normalised (C, H, W).

        RequestError where the file has changed since.
        """
        path, sha256 = self.files[patch.picture]
        ready = ImageReader(classifier.spec, normalised=False).read_file((patch.picture, path))
        if isinstance(ready, UnreadableImage) or ready.sha256 != sha256:
            raise RequestError(f"{path} has changed since its patches were found; start again")
        return ready.pixels, image.normalise(ready.pixels, classifier.spec)


def find_patches(
    classifier: Classifier,
    files: Mapping[str, Path],
    *,
    layer: str,
    channels: Sequence[int] | None = None,
    k: int = 9,
    on_pictures: OnPictures = no_op,
) -> Patches:
    """Run every picture (id -> file) up to the layer once; keep for each channel the ``k`` that excite it most.

    Memory does not grow with the number of pictures, but for their names. Files that cannot be read are reported and
    left out. Behind a fully connected layer a channel's patch is the whole picture. Raises RequestError for a layer or
    channel that there is not, a layer whose units have no receptive field, and for ``k`` above the number of readable
    pictures; UnsupportedModelError where receptive fields are not known.
    """
    if k < 1:
        raise RequestError(f"k={k} keeps nothing; use 1 or more", field="k")
    require_eval(classifier.module)
    kind = type(find_layer(classifier.module, layer)).__name__
    field = receptive_field(classifier, layer)
    seeker = _Seeker(classifier, layer, field, k)
    wanted = _channels(channels, seeker.strongest.channels, layer)
    for done, outcome in enumerate(seeker.run(files), start=1):
        on_pictures(done, len(files))
        if isinstance(outcome, UnreadableImage):
            seeker.unreadable.append((outcome.id, outcome.reason))
    if seeker.strongest.seen < k:
        reasons = "".join(f"; {id}: {reason}" for id, reason in seeker.unreadable[:3])
        raise RequestError(
            f"k={k}, but {seeker.strongest.seen} of {len(files)} pictures could be read{reasons}; use a smaller k "
            "or more pictures",
            field="k",
        )
    found = {channel: seeker.patches(channel) for channel in wanted}
    names = {patch.picture for some in found.values() for patch in some}
    return Patches(
        classifier.spec.name,
        classifier.spec.weights_sha256,
        layer,
        kind,
        field,
        seeker.strongest.seen,
        found,
        tuple(seeker.unreadable),
        {name: (files[name], seeker.sha256[name]) for name in sorted(names)},
    )


class _Seeker:
    def __init__(self, classifier: Classifier, layer: str, field: Field, k: int) -> None:
        side = classifier.spec.crop
        example = torch.zeros(1, 3, side, side, device=classifier.device)
        self._classifier, self._layer, self._field = classifier, layer, field
        self._up_to = PartialForward(classifier.module, [layer], example)
        self.strongest = TopK(self._maps(example).shape[1], k)
        self.names: list[str] = []
        self.sha256: dict[str, str] = {}
        self.unreadable: list[tuple[str, str]] = []

    def run(self, files: Mapping[str, Path]) -> Iterator[LoadedImage | UnreadableImage]:
        """What became of each file, after the layer has seen it."""
        reader = ImageReader(self._classifier.spec, normalised=True)
        reading = ordered_map(reader.read_file, files.items(), workers=cores(), ahead=2 * BATCH)
        with contextlib.closing(reading) as outcomes:
            for some in batched(outcomes, BATCH):
                self._add([outcome for outcome in some if isinstance(outcome, LoadedImage)])
                yield from some

    def patches(self, channel: int) -> tuple[Patch, ...]:
        found, at = self.strongest, range(self.strongest.k)
        units = [Unit(channel, int(found.y_CM[channel, m]), int(found.x_CM[channel, m])) for m in at]
        return tuple(
            Patch(
                channel,
                m + 1,
                float(found.value_CM[channel, m]),
                self.names[found.picture_CM[channel, m]],
                units[m],
                self._field.box(units[m].y, units[m].x),
            )
            for m in at
        )

    def _add(self, pictures: Sequence[LoadedImage]) -> None:
        if not pictures:
            return
        x_NCHW = torch.from_numpy(np.stack([each.pixels for each in pictures])).to(self._classifier.device)
        maps_NCHW = self._maps(x_NCHW)
        if not np.isfinite(maps_NCHW).all():
            raise ModelError(f"layer {self._layer!r} gave values that are not finite; the weights may be damaged")
        self.strongest.add(maps_NCHW)
        self.names += [each.id for each in pictures]
        self.sha256 |= {each.id: each.sha256 for each in pictures}

    def _maps(self, x_NCHW: torch.Tensor) -> Floats:
        with torch.no_grad():
            out = self._up_to(x_NCHW)[self._layer]
        if out.ndim not in (2, 4):
            raise RequestError(
                f"layer {self._layer!r} gives {'×'.join(map(str, out.shape[1:]))} numbers a picture, neither a map of "
                "channels nor a row of them; choose another",
                field="layer",
            )
        maps = out if out.ndim == 4 else out[:, :, None, None]
        return np.asarray(maps.float().cpu().numpy())


def _channels(given: Sequence[int] | None, count: int, layer: str) -> list[int]:
    wanted = list(range(count)) if given is None else sorted(set(given))
    outside = [channel for channel in wanted if not 0 <= channel < count]
    if outside or not wanted:
        said = f"no channel {outside[0]}" if outside else "no channels asked for"
        raise RequestError(f"layer {layer!r}: {said}; there are 0..{count - 1}", field="channels")
    return wanted


TILE = 96


def crop(view_HWC: Bytes8, box: Box, *, fill: Sequence[int]) -> Bytes8:
    """The box cut from the picture, ``fill`` where it lies beyond the border: the crop is padded and never shifted."""
    top, left, bottom, right = box
    height, width = view_HWC.shape[:2]
    out = np.empty((bottom - top, right - left, 3), np.uint8)
    out[:] = np.asarray(fill, np.uint8)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = view_HWC[rows, columns]
    return out


def shown(box: Box, picture: tuple[int, int]) -> Box:
    """The part of a box that is worth showing: along a side where it is longer than the picture, the picture's."""
    (top, left, bottom, right), (height, width) = box, picture
    if bottom - top > height:
        top, bottom = 0, height
    if right - left > width:
        left, right = 0, width
    return top, left, bottom, right


def cut_gradient(grad_CHW: Floats, box: Box) -> Floats:
    """The box cut from a gradient, 0 beyond the border."""
    top, left, bottom, right = box
    _, height, width = grad_CHW.shape
    out = np.zeros((len(grad_CHW), bottom - top, right - left), grad_CHW.dtype)
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    out[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = grad_CHW[:, rows, columns]
    return out


def channel_sheet(crops: Sequence[Bytes8], gradients: Sequence[Floats]) -> Bytes8:
    """Crops in a row, strongest first, their gradients below, each drawn to its own scale; no gradients, one row."""
    rows = [hstack([_tile(each) for each in crops], gap=4)]
    if gradients:
        rows.append(hstack([_tile(gradient_image(each)) for each in gradients], gap=4))
    return vstack(rows, gap=4)


def _tile(picture_HWC: Bytes8) -> Bytes8:
    """A square: small crops with whole squares for pixels, large ones made smaller."""
    longest = max(picture_HWC.shape[:2])
    if longest <= TILE:
        picture_HWC = enlarge(picture_HWC, TILE // longest)
    else:
        size = tuple(max(1, round(side * TILE / longest)) for side in picture_HWC.shape[1::-1])
        picture_HWC = np.asarray(Image.fromarray(picture_HWC).resize((size[0], size[1]), Image.Resampling.LANCZOS))
    height, width = picture_HWC.shape[:2]
    return np.pad(picture_HWC, ((0, TILE - height), (0, TILE - width), (0, 0)), constant_values=255)
