"""One pass over the images for all channels of all layers: who excites each most, how often, and for which classes."""

from __future__ import annotations

import contextlib
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convlens.atlas.statistics import ChannelHistograms, ClassMeans
from convlens.errors import ModelError, RequestError
from convlens.features.loader import ImageReader, LoadedImage
from convlens.inspection.patches import TopK
from convlens.instrument import OUTPUT, Tap, arithmetic, find_layer, in_format_of, require_eval, tapped
from convlens.models import Classifier
from convlens.types import Floats, no_op
from convlens.utils.concurrency import batched, cores, ordered_map
from convlens.utils.files import atomic_write

_BATCH = 16
_SAVE_S = 30.0  # between two states on disk: what a kill may cost


@dataclass
class LayerSurvey:
    """What the images did to one layer's channels.

    ``top`` holds the strongest images, ``peaks`` the histograms of each image's largest value, ``active_C`` how many
    images have one above 0. ``predicted`` and ``labelled`` are the means of the maps by class, ``feeds_head`` whether
    what the head takes is this layer's output, averaged over its map.
    """

    channels: int
    k: int
    top: TopK = field(init=False)
    peaks: ChannelHistograms = field(init=False)
    predicted: ClassMeans = field(init=False)
    labelled: ClassMeans = field(init=False)
    active_C: Any = field(init=False)
    mean_C: Floats = field(init=False)
    feeds_head: bool = False
    has_map: bool = True

    def __post_init__(self) -> None:
        self.top = TopK(self.channels, self.k)
        self.peaks = ChannelHistograms(self.channels)
        self.predicted, self.labelled = ClassMeans(self.channels), ClassMeans(self.channels)
        self.active_C = np.zeros(self.channels, np.int64)
        self.mean_C = np.zeros(self.channels)

    def add(self, maps_NCHW: Floats, predicted_N: Sequence[int], labelled_N: Sequence[int | None]) -> None:
        """Count the layer's output for the next images; a class of -1 or None is none."""
        peak_NC = maps_NCHW.max(axis=(2, 3))
        mean_NC = maps_NCHW.mean(axis=(2, 3), dtype=np.float64)
        self.top.add(maps_NCHW)
        self.peaks.add(peak_NC)
        self.active_C = self.active_C + (peak_NC > 0).sum(axis=0)
        for mean_C, predicted, labelled in zip(mean_NC, predicted_N, labelled_N, strict=True):
            self.mean_C = self.mean_C + mean_C
            if predicted >= 0:
                self.predicted.add(predicted, mean_C)
            if labelled is not None:
                self.labelled.add(labelled, mean_C)

    def state_dict(self) -> dict[str, Any]:
        """Everything counted so far, as arrays by name."""
        top = {name: getattr(self.top, name) for name in ("value_CM", "image_CM", "y_CM", "x_CM")}
        parts: dict[str, Mapping[str, Any]] = {
            "top": {**top, "seen": np.array(self.top.seen)},
            "peaks": self.peaks.state_dict(),
            "predicted": self.predicted.state_dict(),
            "labelled": self.labelled.state_dict(),
            "own": {"active_C": self.active_C, "mean_C": self.mean_C, "feeds_head": np.array(self.feeds_head)},
        }
        return {f"{part}.{name}": values for part, arrays in parts.items() for name, values in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("value_CM", "image_CM", "y_CM", "x_CM"):
            setattr(self.top, name, state[f"top.{name}"])
        self.top.seen = int(state["top.seen"])
        for name in ("peaks", "predicted", "labelled"):
            getattr(self, name).load_state_dict(_part(state, name))
        self.active_C, self.mean_C = state["own.active_C"], state["own.mean_C"]
        self.feeds_head = bool(state["own.feeds_head"])


class Survey:
    """The pass itself: ``run`` it, then read ``layers``. A state on disk lets another process go on with it.

    ``ids`` are the images that could be read, in order, ``sha256`` the hashes of their files by id, ``predicted`` the
    class of each (-1 of a network without classes), ``unreadable`` holds (id, reason) of the others. Raises
    RequestError for a layer that does not exist, does not run or has no channels, and ModelError for a network in
    training mode.
    """

    def __init__(self, classifier: Classifier, layers: Sequence[str], *, k: int) -> None:
        require_eval(classifier.module)
        self._classifier = classifier
        self._head = _linear_head(classifier)
        self.ids: list[str] = []
        self.sha256: dict[str, str] = {}
        self.predicted: list[int] = []
        self.unreadable: list[tuple[str, str]] = []
        self.done = 0
        self.layers = self._begin(layers, k)

    def run(
        self,
        files: Mapping[str, Path],
        classes: Mapping[str, int],
        *,
        state: Path | None = None,
        on_images: Callable[[int, int], None] = no_op,
    ) -> None:
        """Run what remains of the images (id -> file) through the network; ``classes`` are true ones by id.

        With ``state``, a file, it goes on where that one ends, and writes it every half minute and at the end.
        """
        if state is not None and state.exists():
            self._load(state)
        reader = ImageReader(self._classifier.spec, normalised=True)
        remaining = list(files.items())[self.done :]
        reading = ordered_map(reader.read_file, remaining, workers=cores(), ahead=2 * _BATCH)
        saved = time.monotonic()
        with contextlib.closing(reading) as outcomes, self._tapped(list(self.layers)) as tap:
            on_images(self.done, len(files))
            # Batches are of so many files, whatever becomes of them: a resumed pass makes the same ones, and with them
            # the same last bits.
            for batch in batched(outcomes, _BATCH):
                images = [outcome for outcome in batch if isinstance(outcome, LoadedImage)]
                self.unreadable += [(each.id, each.reason) for each in batch if not isinstance(each, LoadedImage)]
                if images:
                    self._add(tap, images, classes)
                self.done += len(batch)
                on_images(self.done, len(files))
                if state is not None and (time.monotonic() - saved > _SAVE_S or self.done == len(files)):
                    self._save(state)
                    saved = time.monotonic()
            if not remaining:
                # Nothing ran, which the tap would take for layers that do not run.
                self._outputs(tap, self._example())

    def head_weights(self, layer: str) -> Floats | None:
        """(K, C): what each channel's mean adds to each class's logit; None where the layer does not feed the head."""
        if self._head is None or not self.layers[layer].feeds_head:
            return None
        weight = self._head.weight.detach().float().cpu().numpy()
        return np.asarray(weight.reshape(weight.shape[0], -1))

    def _begin(self, layers: Sequence[str], k: int) -> dict[str, LayerSurvey]:
        begun = {}
        with self._tapped(layers) as tap:
            outputs, _ = self._outputs(tap, self._example())
        for name in layers:
            _require_channels(find_layer(self._classifier.module, name), name, outputs[name])
            begun[name] = LayerSurvey(outputs[name].shape[1], k, feeds_head=self._head is not None)
            begun[name].has_map = outputs[name].ndim == 4
        return begun

    def _example(self) -> Tensor:
        spec = self._classifier.spec
        return torch.zeros(1, spec.channels, *spec.input_size, device=self._classifier.device)

    def _tapped(self, layers: Sequence[str]) -> contextlib.AbstractContextManager[Tap]:
        head = [self._classifier.spec.embedding_layer] if self._head is not None else []
        return tapped(self._classifier.module, inputs=head, outputs=layers)

    def _outputs(self, tap: Tap, x_NCHW: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad(), arithmetic(self._classifier.precision, self._classifier.device):
            logits_NK = tap.module(in_format_of(self._classifier.module, x_NCHW))
        return tap.outputs, logits_NK

    def _add(self, tap: Tap, images: Sequence[LoadedImage], classes: Mapping[str, int]) -> None:
        x_NCHW = torch.from_numpy(np.stack([each.pixels for each in images])).to(self._classifier.device)
        outputs, logits_NK = self._outputs(tap, x_NCHW)
        has_classes = bool(self._classifier.spec.classes)
        predicted_N = logits_NK.argmax(1).tolist() if has_classes else [-1] * len(images)
        labelled_N = [classes.get(each.id) for each in images]
        head_ND = _pooled(tap.inputs[self._classifier.spec.embedding_layer]) if self._head is not None else None
        for name, survey in self.layers.items():
            maps_NCHW = _as_maps(outputs[name])
            if not np.isfinite(maps_NCHW).all():
                raise ModelError(f"layer {name!r} gave values that are not finite; the weights may be damaged")
            survey.add(maps_NCHW, predicted_N, labelled_N)
            survey.feeds_head &= head_ND is not None and _equal(_pooled(outputs[name]), head_ND)
        self.ids += [each.id for each in images]
        self.sha256 |= {each.id: each.sha256 for each in images}
        self.predicted += predicted_N

    def _save(self, path: Path) -> None:
        lists = {
            "done": self.done,
            "ids": self.ids,
            "sha256": self.sha256,
            "predicted": self.predicted,
            "unreadable": self.unreadable,
        }
        arrays = {
            f"{number}.{name}": values
            for number, survey in enumerate(self.layers.values())
            for name, values in survey.state_dict().items()
        }
        encoded = np.frombuffer(json.dumps(lists).encode("ascii"), np.uint8)
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.savez(file, lists=encoded, **arrays)

    def _load(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as stored:
                state = dict(stored)
        except (OSError, ValueError, zipfile.BadZipFile):
            return  # it begins anew
        lists = json.loads(state.pop("lists").tobytes())
        self.done, self.ids, self.sha256 = lists["done"], lists["ids"], lists["sha256"]
        self.predicted = lists["predicted"]
        self.unreadable = [(id, reason) for id, reason in lists["unreadable"]]
        for number, survey in enumerate(self.layers.values()):
            survey.load_state_dict(_part(state, str(number)))


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(f"{prefix}."): each for name, each in state.items() if name.startswith(f"{prefix}.")}


def _require_channels(module: nn.Module, name: str, output: Tensor) -> None:
    # A linear layer inside ConvNeXt gives four axes as well, but with channels last.
    if output.ndim not in (2, 4) or (output.ndim == 4 and isinstance(module, nn.Linear)):
        raise RequestError(
            f"layer {name!r} ({type(module).__name__}) gives {'×'.join(map(str, output.shape[1:]))} numbers per image, "
            "neither a map of channels nor a row of them; choose another",
            field="layers",
        )


def _linear_head(classifier: Classifier) -> nn.Linear | nn.Conv2d | None:
    """The layer that makes the logits of one vector of features; None where the network has none."""
    name = classifier.spec.embedding_layer
    if not name or name.endswith(OUTPUT) or not classifier.spec.classes:
        return None
    layer = find_layer(classifier.module, name)
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return None
    classes, inputs = layer.weight.shape[:2]
    return layer if classes == classifier.spec.classes and layer.weight.numel() == classes * inputs else None


def _as_maps(output: Tensor) -> Floats:
    maps = output if output.ndim == 4 else output[:, :, None, None]
    return np.asarray(maps.float().cpu().numpy())


def _pooled(output: Tensor) -> Tensor:
    return output.float().mean((2, 3)) if output.ndim == 4 else output.float()


def _equal(mean_NC: Tensor, head_ND: Tensor) -> bool:
    """But for the last bits, in which means of another order differ."""
    if mean_NC.shape != head_ND.shape:
        return False
    return bool((mean_NC - head_ND).abs().max() <= 1e-4 * head_ND.abs().max().clamp_min(1e-12))
