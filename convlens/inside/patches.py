"""The parts of pictures that excite each channel of a layer most, over a whole folder (Zeiler & Fergus 2014)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from convlens import image
from convlens.bulk.ahead import cores, grouped, in_order
from convlens.bulk.pictures import Reader, Ready, Unreadable
from convlens.errors import ModelError, RequestError
from convlens.inside.fields import Box, Field
from convlens.inside.neurons import Unit
from convlens.inside.receptive import receptive_field
from convlens.inside.strongest import Strongest
from convlens.instrument import UpTo, layer_of, require_eval
from convlens.models import Classifier
from convlens.types import Bytes8, Floats

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
        ready = Reader(classifier.spec, normalised=False).file((patch.picture, path))
        if isinstance(ready, Unreadable) or ready.sha256 != sha256:
            raise RequestError(f"{path} has changed since its patches were found; start again")
        return ready.pixels, image.normalise(ready.pixels, classifier.spec)


def ignore(done: int, total: int) -> None:
    """The progress callback that does nothing; both count pictures."""


def find_patches(
    classifier: Classifier,
    files: Mapping[str, Path],
    *,
    layer: str,
    channels: Sequence[int] | None = None,
    k: int = 9,
    on_pictures: OnPictures = ignore,
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
    kind = type(layer_of(classifier.module, layer)).__name__
    field = receptive_field(classifier, layer)
    seeker = _Seeker(classifier, layer, field, k)
    wanted = _channels(channels, seeker.strongest.channels, layer)
    for done, outcome in enumerate(seeker.run(files), start=1):
        on_pictures(done, len(files))
        if isinstance(outcome, Unreadable):
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
        self._up_to = UpTo(classifier.module, [layer], example)
        self.strongest = Strongest(self._maps(example).shape[1], k)
        self.names: list[str] = []
        self.sha256: dict[str, str] = {}
        self.unreadable: list[tuple[str, str]] = []

    def run(self, files: Mapping[str, Path]) -> Iterator[Ready | Unreadable]:
        """What became of each file, after the layer has seen it."""
        reader = Reader(self._classifier.spec, normalised=True)
        reading = in_order(reader.file, files.items(), workers=cores(), ahead=2 * BATCH)
        with contextlib.closing(reading) as outcomes:
            for some in grouped(outcomes, BATCH):
                self._add([outcome for outcome in some if isinstance(outcome, Ready)])
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

    def _add(self, pictures: Sequence[Ready]) -> None:
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
