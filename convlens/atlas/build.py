"""An atlas of a network: one pass over the images, then channel by channel, then the pages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convlens.atlas.channel import ChannelImages, ChannelOptions, ChannelPainter, ChannelTask, open_painter
from convlens.atlas.effective_field import effective_box, effective_side
from convlens.atlas.pages import write_pages
from convlens.atlas.records import channel_record, folder_names, strongest_patches
from convlens.atlas.site_dir import AtlasDir, Record, open_atlas_dir
from convlens.atlas.survey import Survey
from convlens.errors import RequestError
from convlens.evaluation.labels import LabelsFrom, true_classes
from convlens.inspection.patch_sheet import visible_box
from convlens.inspection.patches import Patch, PatchGradients, read_unchanged
from convlens.inspection.receptive_field import ReceptiveField, receptive_fields, require_receptive_field
from convlens.jobs.ray_cluster import map_on
from convlens.models import Classifier
from convlens.synth.trunk import inversion_layers
from convlens.types import ArithmeticPrecision, Step, no_op

FORMAT = 1
_DEFAULTS = ChannelOptions()
_NEARLY_ALL = 0.75  # of the image's side: a unit that sees so much is shown with the whole image
_SAMPLED = 16  # units by whose gradients a layer's effective receptive field is measured


@dataclass(frozen=True)
class Atlas:
    """What came of it: ``facts`` are those of atlas.json (docs/atlas.md), ``records`` one for each channel."""

    out: Path
    facts: Mapping[str, Any]
    records: Sequence[Record]


class AtlasCluster(Protocol):
    """Other processes that draw channels."""

    def images(self, tasks: Iterable[ChannelTask], options: ChannelOptions) -> Generator[ChannelImages]:
        """Those of each channel, in their order."""


@dataclass(frozen=True)
class ChannelActors:
    """Draws channels on the Ray cluster at ``address``, with the model of that name in each worker.

    The images must lie where every machine finds them. JobError as for ``convlens.jobs.ray_cluster.map_on``.
    """

    address: str
    model: str
    device: str
    precision: ArithmeticPrecision

    def images(self, tasks: Iterable[ChannelTask], options: ChannelOptions) -> Generator[ChannelImages]:
        make = partial(open_painter, self.model, self.device, self.precision, options)
        yield from map_on(self.address, make, tasks, device=self.device)


def default_layers(classifier: Classifier) -> tuple[str, ...]:
    """Up to five layers from the first to the last, by their depth, and the last one with a map, which the head reads.

    RequestError for a network that shows none.
    """
    names = [*inversion_layers(classifier), classifier.spec.gradcam_layer]
    return tuple(dict.fromkeys(name for name in names if name))


def build_atlas(
    classifier: Classifier,
    files: Mapping[str, Path],
    out: Path,
    *,
    layers: Sequence[str] = (),
    channels: Sequence[int] | None = None,
    options: ChannelOptions = _DEFAULTS,
    labels: LabelsFrom | None = None,
    overwrite: bool = False,
    cluster: AtlasCluster | None = None,
    on_step: Callable[[Step], None] = no_op,
) -> Atlas:
    """Write a site that shows, for each channel of the layers, what maximises it, what excites it and its classes.

    ``files`` are images by id. ``layers`` are dotted names, by default ``default_layers``; ``channels`` numbers, of
    which each layer shows those that it has, by default all. ``labels`` gives the true classes, as ``true_classes``
    takes them. Killed and called again, it resumes and ends with the files of one run. ``on_step`` is called after each
    image, channel and page. Raises RequestError for layers and channels that do not exist, a layer whose units have no
    receptive field, and fewer readable images than patches; UnsupportedModelError where receptive fields are not known
    or guided backprop is not defined; and as ``open_atlas_dir`` does.
    """
    layers = tuple(dict.fromkeys(layers)) or default_layers(classifier)
    survey = Survey(classifier, layers, k=options.k)
    fields = receptive_fields(classifier)
    plan = _Plan(
        classifier,
        options,
        {name: require_receptive_field(fields, name) for name in layers},
        {name: _select(channels, survey.layers[name].channels, name) for name in layers},
    )
    painter = ChannelPainter(classifier, options)
    for name in layers:
        painter.require_gradients(name)
    classes = true_classes(list(files), labels, classifier.spec.labels)
    with open_atlas_dir(out, _settings(plan, files, classes, channels), overwrite=overwrite) as folder:
        survey.run(
            files, classes, state=folder.survey, on_images=lambda done, total: on_step(Step("images", done, total))
        )
        _require_images(survey, options.k, len(files))
        run = _Run(plan, survey, files, folder, on_step)
        records = run.records(cluster.images if cluster else lambda tasks, _: (painter(task) for task in tasks))
        facts = run.facts()
        folder.publish(facts, lambda draft: write_pages(draft, facts, records, run.view, on_step=on_step))
    return Atlas(out, facts, records)


@dataclass(frozen=True)
class _Plan:
    classifier: Classifier
    options: ChannelOptions
    fields: Mapping[str, ReceptiveField]
    channels: Mapping[str, Sequence[int]]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.fields)


class _Run:
    """What comes behind the survey."""

    def __init__(
        self,
        plan: _Plan,
        survey: Survey,
        files: Mapping[str, Path],
        folder: AtlasDir,
        on_step: Callable[[Step], None],
    ) -> None:
        self._plan, self._survey, self._folder, self._on_step = plan, survey, folder, on_step
        # Absolute: a cluster's workers may have another folder for their own.
        self._files = {id: (files[id].absolute(), survey.sha256[id]) for id in survey.ids}
        self._number = {id: number for number, id in enumerate(survey.ids)}
        self._sides = {name: self._effective_side(name) for name in plan.layers}
        self._folders = folder_names(plan.layers)

    def records(
        self, draw: Callable[[Iterable[ChannelTask], ChannelOptions], Generator[ChannelImages]]
    ) -> list[Record]:
        """Those that were resumed, and one for each further channel."""
        records = list(self._folder.resumed)
        units = [(name, channel) for name in self._plan.layers for channel in self._plan.channels[name]]
        labels = self._plan.classifier.spec.labels
        self._on_step(Step("channels", len(records), len(units)))
        tasks = [self._task(*unit) for unit in units[len(records) :]]
        with closing(draw(tasks, self._plan.options)) as drawn:
            for task, images in zip(tasks, drawn, strict=True):
                record = channel_record(self._survey, task, images, labels, self._number)
                self._folder.add(record, f"{self._folders[task.layer]}/{task.channel}", images.files)
                records.append(record)
                self._on_step(Step("channels", len(records), len(units)))
        return records

    def facts(self) -> dict[str, Any]:
        """What atlas.json holds."""
        spec, survey = self._plan.classifier.spec, self._survey
        return {
            "format": FORMAT,
            "model": spec.name,
            "weights_sha256": spec.weights_sha256,
            "options": self._plan.options.to_json(),
            "images": len(survey.ids),
            "image_size": list(spec.input_size),
            "unreadable": [list(pair) for pair in survey.unreadable],
            "layers": [self._layer_facts(name) for name in self._plan.layers],
        }

    def view(self, image_id: str) -> Any:
        """What the network sees of an image (H, W, 3)."""
        return read_unchanged(self._plan.classifier, *self._files[image_id])[0]

    def _layer_facts(self, name: str) -> dict[str, Any]:
        field, folder = self._plan.fields[name], self._folders[name]
        return {
            "name": name,
            "kind": field.kind,
            "page": f"layers/{folder}/index.html",
            "channel_page": f"layers/{folder}/{{channel}}.html",
            "pictures": f"pictures/{folder}",
            "grid": list(field.grid),
            "receptive_field": list(field.size),
            "effective_receptive_field": self._sides[name],
            "feeds_head": self._survey.head_weights(name) is not None,
            "channel_count": self._survey.layers[name].channels,
            "channels": list(self._plan.channels[name]),
        }

    def _task(self, layer: str, channel: int) -> ChannelTask:
        field, side = self._plan.fields[layer], self._sides[layer]
        patches = []
        for rank, (neuron, value, image_id) in enumerate(strongest_patches(self._survey, layer, channel), start=1):
            box = visible_box(effective_box(field.box(neuron.y or 0, neuron.x or 0), side), field.image_size)
            if side is not None and side >= _NEARLY_ALL * max(field.image_size):
                # Of a unit near the border such a square would be mostly padding.
                box = (0, 0, *field.image_size)
            patches.append(Patch(neuron, rank, value, image_id, box))
        return ChannelTask(
            layer, channel, tuple(patches), {each.image_id: self._files[each.image_id] for each in patches}
        )

    def _effective_side(self, layer: str) -> int | None:
        """By the gradients of units of channels evenly spread, each in the last image of its patches.

        The first ones may have units at the end of a ReLU6's range, where they have no gradient.
        """
        survey, field = self._survey.layers[layer], self._plan.fields[layer]
        if not survey.has_map:
            return None
        count = min(_SAMPLED, survey.channels)
        some = np.linspace(0, survey.channels - 1, count).round().astype(int).tolist()
        units = [list(strongest_patches(self._survey, layer, channel))[-1] for channel in some]
        images = [read_unchanged(self._plan.classifier, *self._files[image_id])[1] for _, _, image_id in units]
        gradients = PatchGradients(self._plan.classifier, layer, backprop="saliency")
        boxes = [field.box(neuron.y or 0, neuron.x or 0) for neuron, _, _ in units]
        side = effective_side(gradients.each([neuron for neuron, _, _ in units], images), boxes)
        # Never beyond the receptive field, nor, by more than a pixel's half, beyond the image's size.
        return side and min(side, max(field.size), max(field.image_size) + 1)


def _select(channels: Sequence[int] | None, count: int, layer: str) -> list[int]:
    selected = list(range(count)) if channels is None else sorted({each for each in channels if 0 <= each < count})
    if not selected:
        raise RequestError(
            f"layer {layer!r} has none of the channels {', '.join(map(str, list(channels or ())[:5]))}; there are "
            f"0..{count - 1}",
            field="channels",
        )
    return selected


def _require_images(survey: Survey, k: int, count: int) -> None:
    if len(survey.ids) < k:
        reasons = "".join(f"; {id}: {reason}" for id, reason in survey.unreadable[:3])
        raise RequestError(
            f"{k} patches a channel come from as many images, but {len(survey.ids)} of {count} could be read{reasons}; "
            "ask for fewer patches, or give more images",
            field="k",
        )


def _settings(
    plan: _Plan, files: Mapping[str, Path], classes: Mapping[str, int], channels: Sequence[int] | None
) -> dict[str, Any]:
    """All that decides the files of the site, as JSON values."""
    digest = hashlib.sha256()
    for id, path in files.items():
        size = path.stat().st_size if path.exists() else -1
        digest.update(f"{id}\0{size}\0{classes.get(id, -1)}\0".encode("utf-8", "surrogateescape"))
    classifier = plan.classifier
    return {
        "format": FORMAT,
        "model": classifier.spec.name,
        "weights_sha256": classifier.spec.weights_sha256,
        "device": str(classifier.device),
        "precision": classifier.precision,
        "layers": list(plan.layers),
        "channels": None if channels is None else sorted(set(channels)),
        **plan.options.to_json(),
        "labelled": len(classes),
        "images": len(files),
        "list_sha256": digest.hexdigest(),
    }
