"""The image patches that excite each channel of a layer most, over a whole folder (Zeiler & Fergus 2014).

``find_patches`` computes them, ``PatchGradients`` what excites the neuron of each; ``patch_sheet.py`` draws both.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from convlens import image
from convlens.errors import ImageError, ModelError, RequestError
from convlens.explain.neurons import NeuronGraph
from convlens.features.loader import ImageReader, LoadedImage, UnreadableImage
from convlens.inspection.receptive_field import Box, ReceptiveField, receptive_field
from convlens.instrument import PartialForward, ReluRule, arithmetic, find_layer, require_eval
from convlens.models import Classifier
from convlens.types import Bytes8, Floats, Ints, Neuron, no_op
from convlens.utils.concurrency import batched, cores, ordered_map

_BATCH = 16
Backprop = Literal["guided", "saliency", "none"]
_RULES: dict[Backprop, ReluRule] = {"guided": "guided", "saliency": "plain"}


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
