"""The image patches that excite each channel of a layer most, over a whole folder (Zeiler & Fergus 2014).

``find_patches`` computes them, ``PatchGradients`` what excites the neuron of each, ``draw_channel_sheet`` draws both.
"""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from convlens import image
from convlens.errors import ImageError, ModelError, RequestError
from convlens.explain.neurons import NeuronGraph
from convlens.features.loader import ImageReader, LoadedImage, UnreadableImage
from convlens.inspection.receptive_field import Box, ReceptiveField, receptive_field
from convlens.instrument import PartialForward, ReluRule, arithmetic, find_layer, require_eval
from convlens.models import Classifier
from convlens.types import Bytes8, Floats, Ints, Neuron, no_op
from convlens.utils.concurrency import batched, cores, ordered_map
from convlens.visualization import draw_gradient
from convlens.visualization.layout import enlarge, hstack, text_image, vstack

_BATCH = 16
Backprop = Literal["guided", "saliency", "none"]
_RULES: dict[Backprop, ReluRule] = {"guided": "guided", "saliency": "plain"}
_TILE, _LARGEST_TILE, _LETTERS, _THREE_LINES = 128, 160, 11, 50  # pixels

T = TypeVar("T", bound=np.generic)


# ---- numbers


@dataclass
class TopK:
    """For each of ``channels`` the ``k`` images with the largest activation, and where in them it lies.

    Images come in batches of any size, in order. An image counts once per channel, by its largest activation (the first
    place of equals, row by row); of equal values the earlier image comes first. ``value_CM`` falls along M; places not
    filled yet hold -inf and image -1.
    """

    # Memory does not grow with the number of images: each batch is merged into the k best and dropped.

    channels: int
    k: int
    seen: int = 0
    value_CM: Floats = field(init=False)
    image_CM: Ints = field(init=False)
    y_CM: Ints = field(init=False)
    x_CM: Ints = field(init=False)

    def __post_init__(self) -> None:
        shape = self.channels, self.k
        self.value_CM = np.full(shape, -np.inf, np.float32)
        self.image_CM, self.y_CM, self.x_CM = (np.full(shape, fill, np.int64) for fill in (-1, 0, 0))

    def add(self, maps_NCHW: Floats) -> None:
        """Merge the layer's output for the next images."""
        count, channels, _, width = maps_NCHW.shape
        flat_NCP = maps_NCHW.reshape(count, channels, -1)
        at_NC = flat_NCP.argmax(axis=2)
        value_NC = np.take_along_axis(flat_NCP, at_NC[..., None], axis=2)[..., 0]
        image_N1 = np.arange(self.seen, self.seen + count)[:, None]
        y_NC, x_NC = np.divmod(at_NC, width)
        self._merge(value_NC.T, np.broadcast_to(image_N1, at_NC.shape).T, y_NC.T, x_NC.T)
        self.seen += count

    def _merge(self, value_CN: Floats, image_CN: Ints, y_CN: Ints, x_CN: Ints) -> None:
        value_CA = np.concatenate([self.value_CM, value_CN], axis=1)
        # A stable sort, with earlier images before later ones: of equal values the earlier image stays.
        order_CM = np.argsort(-value_CA, axis=1, kind="stable")[:, : self.k]
        pairs = [(self.image_CM, image_CN), (self.y_CM, y_CN), (self.x_CM, x_CN)]
        self.value_CM = np.take_along_axis(value_CA, order_CM, axis=1)
        self.image_CM, self.y_CM, self.x_CM = (
            np.take_along_axis(np.concatenate(pair, axis=1), order_CM, axis=1) for pair in pairs
        )


@dataclass(frozen=True)
class Patch:
    """One neuron's view of an image that excites its channel: ``value`` is the activation, ``rank`` starts at 1.

    ``neuron`` has no place where the layer has no map. ``box`` is its receptive field in pixels of the network's input:
    top, left, bottom, right, the last two exclusive, beyond the image where the network pads. ``image_id`` names the
    file.
    """

    neuron: Neuron
    rank: int
    value: float
    image_id: str
    box: Box


@dataclass(frozen=True)
class Patches:
    """Each channel's patches, strongest first, at most one per image. ``unreadable`` holds (id, reason).

    ``files`` holds path and sha256 of the images that patches come from, ``images`` is how many images were read.
    """

    model: str
    weights_sha256: str
    layer: str
    kind: str
    receptive_field: ReceptiveField
    images: int
    by_channel: Mapping[int, tuple[Patch, ...]]
    unreadable: tuple[tuple[str, str], ...]
    files: Mapping[str, tuple[Path, str]]

    def read(self, patch: Patch, classifier: Classifier) -> tuple[Bytes8, Floats]:
        """The patch's image once more: the network's input as it is shown (H, W, 3), and normalised (C, H, W).

        RequestError where the file has changed since.
        """
        return read_unchanged(classifier, *self.files[patch.image_id])


def read_unchanged(classifier: Classifier, path: Path, sha256: str) -> tuple[Bytes8, Floats]:
    """An image as it is shown (H, W, 3), and normalised (C, H, W); RequestError where its file has another hash now."""
    # Compared by hash: a crop of a changed file would not show what excited the neuron.
    limits = image.file_limits(classifier.spec.channels)
    changed = RequestError(f"{path} has changed since its patches were found; start again")
    try:
        data = image.read_bytes(path, limits=limits)
    except ImageError as error:
        raise changed from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise changed
    decoded = image.decode_channels(data, classifier.spec.channels, limits=limits)
    prepared = image.prepare(decoded, classifier.spec)
    return prepared.display_HWC, prepared.x_CHW


def find_patches(
    classifier: Classifier,
    files: Mapping[str, Path],
    *,
    layer: str,
    channels: Sequence[int] | None = None,
    k: int = 9,
    on_images: Callable[[int, int], None] = no_op,
    stop: Callable[[], bool] = lambda: False,
) -> Patches:
    """Run every image (id -> file) up to the layer once; keep for each channel the ``k`` that excite it most.

    Memory grows with the number of images only by their names. Files that cannot be read are reported and left out.
    Behind a fully connected layer a channel's patch is the whole image. ``on_images`` is called with the number done
    and the total after each file; where ``stop`` then returns True, the images so far are all, and there may be fewer
    patches than ``k``. Raises RequestError for a layer or channel that does not exist, a layer whose units
    have no receptive field, and for ``k`` above the number of readable images; UnsupportedModelError where receptive
    fields are not known.
    """
    if k < 1:
        raise RequestError(f"k={k} keeps nothing; use 1 or more", field="k")
    require_eval(classifier.module)
    kind = type(find_layer(classifier.module, layer)).__name__
    field = receptive_field(classifier, layer)
    search = _PatchSearch(classifier, layer, field, k)
    selected = _require_channels(channels, search.top.channels, layer)
    for done, outcome in enumerate(search.run(files), start=1):
        on_images(done, len(files))
        if isinstance(outcome, UnreadableImage):
            search.unreadable.append((outcome.id, outcome.reason))
        if stop():
            break
    if search.top.seen < k and not stop():
        reasons = "".join(f"; {id}: {reason}" for id, reason in search.unreadable[:3])
        raise RequestError(
            f"k={k}, but {search.top.seen} of {len(files)} images could be read{reasons}; use a smaller k "
            "or more images",
            field="k",
        )
    by_channel = {channel: search.patches(channel) for channel in selected}
    ids = {patch.image_id for patches in by_channel.values() for patch in patches}
    return Patches(
        classifier.spec.name,
        classifier.spec.weights_sha256,
        layer,
        kind,
        field,
        search.top.seen,
        by_channel,
        tuple(search.unreadable),
        {id: (files[id], search.sha256[id]) for id in sorted(ids)},
    )


class _PatchSearch:
    """One pass over the files; what it keeps of each image is its id, its hash and its place among the top k."""

    def __init__(self, classifier: Classifier, layer: str, field: ReceptiveField, k: int) -> None:
        self._classifier, self._layer, self._field = classifier, layer, field
        self._partial_forward, example_NCHW = _partial_forward(classifier, layer)
        self._has_map = True
        self.top = TopK(self._maps(example_NCHW).shape[1], k)
        self.ids: list[str] = []
        self.sha256: dict[str, str] = {}
        self.unreadable: list[tuple[str, str]] = []

    def run(self, files: Mapping[str, Path]) -> Iterator[LoadedImage | UnreadableImage]:
        """Each file's outcome, after its image went through the layer."""
        reader = ImageReader(self._classifier.spec, normalised=True)
        # Threads read and prepare the next images while the network runs.
        reading = ordered_map(reader.read_file, files.items(), workers=cores(), ahead=2 * _BATCH)
        with contextlib.closing(reading) as outcomes:
            for batch in batched(outcomes, _BATCH):
                self._add([outcome for outcome in batch if isinstance(outcome, LoadedImage)])
                yield from batch

    def patches(self, channel: int) -> tuple[Patch, ...]:
        return tuple(self._patch(channel, m) for m in range(min(self.top.k, self.top.seen)))

    def _patch(self, channel: int, m: int) -> Patch:
        top = self.top
        y, x = int(top.y_CM[channel, m]), int(top.x_CM[channel, m])
        neuron = Neuron(self._layer, channel, y, x) if self._has_map else Neuron(self._layer, channel)
        image_id = self.ids[top.image_CM[channel, m]]
        return Patch(neuron, m + 1, float(top.value_CM[channel, m]), image_id, self._field.box(y, x))

    def _add(self, images: Sequence[LoadedImage]) -> None:
        if not images:
            return
        x_NCHW = torch.from_numpy(np.stack([each.pixels for each in images])).to(self._classifier.device)
        maps_NCHW = self._maps(x_NCHW)
        if not np.isfinite(maps_NCHW).all():
            raise ModelError(f"layer {self._layer!r} gave values that are not finite; the weights may be damaged")
        self.top.add(maps_NCHW)
        self.ids += [each.id for each in images]
        self.sha256 |= {each.id: each.sha256 for each in images}

    def _maps(self, x_NCHW: torch.Tensor) -> Floats:
        with torch.no_grad(), arithmetic(self._classifier.precision, self._classifier.device):
            out = self._partial_forward(x_NCHW)[self._layer]
        if out.ndim not in (2, 4):
            raise RequestError(
                f"layer {self._layer!r} gives {'×'.join(map(str, out.shape[1:]))} numbers per image, neither a map of "
                "channels nor a row of them; choose another",
                field="layer",
            )
        self._has_map = out.ndim == 4
        maps = out if self._has_map else out[:, :, None, None]
        return np.asarray(maps.float().cpu().numpy())


def _require_channels(channels: Sequence[int] | None, count: int, layer: str) -> list[int]:
    selected = list(range(count)) if channels is None else sorted(set(channels))
    outside = [channel for channel in selected if not 0 <= channel < count]
    if outside or not selected:
        problem = f"no channel {outside[0]}" if outside else "no channels asked for"
        raise RequestError(f"layer {layer!r}: {problem}; there are 0..{count - 1}", field="channels")
    return selected


class PatchGradients:
    """d neuron / d image, for neurons of one layer, the network run no further than that layer.

    ``backprop`` is ``guided`` (guided backprop, which needs a network of ReLUs) or ``saliency`` (the plain gradient).
    Raises RequestError for a layer that does not exist, UnsupportedModelError where guided backprop has no rule.
    """

    def __init__(self, classifier: Classifier, layer: str, *, backprop: Backprop = "guided") -> None:
        self._device, self._precision, self._rule = classifier.device, classifier.precision, _RULES[backprop]
        self._partial_forward, _ = _partial_forward(classifier, layer)

    def each(self, neurons: Sequence[Neuron], images: Sequence[Floats]) -> Iterator[Floats]:
        """The gradient (C, H, W) of each neuron in its normalised image (C, H, W), in order."""
        for batch in batched(zip(neurons, images, strict=True), _BATCH):
            yield from self._batch([neuron for neuron, _ in batch], np.stack([x_CHW for _, x_CHW in batch]))

    def _batch(self, neurons: Sequence[Neuron], x_NCHW: Floats) -> Floats:
        # A function of its own, so that one batch's graph is gone before the next one is recorded.
        with arithmetic(self._precision, self._device):
            graph = NeuronGraph(self._partial_forward, torch.from_numpy(x_NCHW).to(self._device), neurons)
            grad_NCHW = graph.gradient(self._rule, method="guided_backprop")
        if not torch.isfinite(grad_NCHW).all():
            raise ModelError(f"the gradient of layer {graph.layer!r} is not finite; the weights may be damaged")
        return np.asarray(grad_NCHW.cpu().numpy())


def _partial_forward(classifier: Classifier, layer: str) -> tuple[PartialForward, torch.Tensor]:
    """The network cut behind the layer, and a black example of its input."""
    spec = classifier.spec
    example_NCHW = torch.zeros(1, spec.channels, *spec.input_size, device=classifier.device)
    return PartialForward(classifier.module, [layer], example_NCHW), example_NCHW


# ---- drawing


def visible_box(box: Box, image_size: tuple[int, int]) -> Box:
    """The part of a box that is worth drawing: where it is longer than the image, the image's side."""
    (top, left, bottom, right), (height, width) = box, image_size
    if bottom - top > height:
        top, bottom = 0, height
    if right - left > width:
        left, right = 0, width
    return top, left, bottom, right


def crop(view_HWC: Bytes8, box: Box, *, fill: Sequence[int]) -> Bytes8:
    """The box cut from the image, ``fill`` beyond its border."""
    top, left, bottom, right = box
    out_HWC = np.empty((bottom - top, right - left, 3), np.uint8)
    out_HWC[:] = np.asarray(fill, np.uint8)
    return _paste_visible(view_HWC, box, out_HWC)


def crop_gradient(grad_CHW: Floats, box: Box) -> Floats:
    """The box cut from a gradient (C, H, W), 0 beyond the border."""
    top, left, bottom, right = box
    out_HWC = np.zeros((bottom - top, right - left, len(grad_CHW)), grad_CHW.dtype)
    return _paste_visible(grad_CHW.transpose(1, 2, 0), box, out_HWC).transpose(2, 0, 1)


def _paste_visible(values_HWC: NDArray[T], box: Box, out_HWC: NDArray[T]) -> NDArray[T]:
    # The crop is padded, never shifted: a shifted one would show pixels that the neuron does not see.
    top, left, bottom, right = box
    height, width = values_HWC.shape[:2]
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    out_HWC[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = values_HWC[rows, columns]
    return out_HWC


def draw_channel_sheet(crops: Sequence[Bytes8], gradients: Sequence[Floats], *, captions: Sequence[str] = ()) -> Bytes8:
    """Crops in a row, strongest first; below each its gradient, if given, drawn to a scale of its own, and its caption.

    A caption that takes more than three lines loses letters of its middle.
    """
    longest = max(max(image_HWC.shape[:2]) for image_HWC in crops)
    side = longest * max(1, _LARGEST_TILE // longest) if longest <= _LARGEST_TILE else _TILE
    rows = [hstack([_tile(each, side) for each in crops], gap=4)]
    if gradients:
        rows.append(hstack([_tile(draw_gradient(each), side) for each in gradients], gap=4))
    if captions:
        rows.append(hstack([_caption(each, side) for each in captions], gap=4))
    return vstack(rows, gap=4)


def _tile(image_HWC: Bytes8, side: int) -> Bytes8:
    """A square of ``side`` pixels: small crops with whole squares for pixels, large ones reduced."""
    longest = max(image_HWC.shape[:2])
    if longest <= side:
        image_HWC = enlarge(image_HWC, side // longest)
    else:
        height, width = (max(1, round(length * side / longest)) for length in image_HWC.shape[:2])
        image_HWC = np.asarray(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.LANCZOS))
    height, width = image_HWC.shape[:2]
    return np.pad(image_HWC, ((0, side - height), (0, side - width), (0, 0)), constant_values=255)


def _caption(text: str, width: int) -> Bytes8:
    """The text in at most three lines; of a longer one the middle gives way: the end tells files apart."""
    # Three lines hold fewer letters than they are pixels wide.
    kept = min(len(text), width)
    fits = bisect_right(range(1, kept + 1), False, key=lambda count: not _fits(_shortened(text, count), width))
    return text_image(_shortened(text, max(1, fits)), size=_LETTERS, width=width)[:_THREE_LINES]


def _fits(text: str, width: int) -> bool:
    return len(text_image(text, size=_LETTERS, width=width)) <= _THREE_LINES


def _shortened(text: str, kept: int) -> str:
    """That many of its letters, half of them from the end."""
    return text if kept >= len(text) else f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
