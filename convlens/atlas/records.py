"""What an atlas says of one channel, as JSON values: from the survey of all images, and the files that were drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convlens.atlas.channel import ChannelImages, ChannelTask
from convlens.atlas.site_dir import Record
from convlens.atlas.statistics import ClassMeans
from convlens.atlas.survey import Survey
from convlens.inspection.patches import Patch
from convlens.types import Floats, Neuron

_CLASSES = 8  # of a channel
_WEIGHTS = 5  # either way
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def folder_names(layers: Sequence[str]) -> dict[str, str]:
    """A folder name for each layer: its own where that is a safe one, all different."""
    names: dict[str, str] = {}
    for layer in layers:
        safe = base = _UNSAFE.sub("_", layer).lstrip(".") or "layer"
        number = 1
        while safe.lower() in {name.lower() for name in names.values()}:
            number += 1
            safe = f"{base}~{number}"
        names[layer] = safe
    return names


def view_file(number: int) -> str:
    """The name of the file that shows what the network sees of the image of this number."""
    return f"{number:06}.jpg"


def channel_record(
    survey: Survey, task: ChannelTask, drawn: ChannelImages, labels: Sequence[str], number: Mapping[str, int]
) -> Record:
    """The record of a channel. ``number`` says by its id which image of the site's an image is."""
    layer, channel = survey.layers[task.layer], task.channel
    start, width, counts = layer.peaks.bars(channel)
    record: Record = {
        "layer": task.layer,
        "channel": channel,
        "strongest": rounded(float(layer.top.value_CM[channel, 0])),
        "mean": rounded(float(layer.mean_C[channel]) / layer.top.seen),
        "active": int(layer.active_C[channel]),
        "images": layer.top.seen,
        "histogram": {"start": start, "width": width, "counts": counts},
        "pictures": [
            {"file": file, "activation": rounded(activation)}
            for file, activation in zip(drawn.picture_files, drawn.activations, strict=True)
        ],
        "patches": [_patch(patch, drawn, place, survey, labels, number) for place, patch in enumerate(task.patches)],
        "predicted": _classes(layer.predicted, channel, labels),
        "labelled": _classes(layer.labelled, channel, labels),
    }
    weights_KC = survey.head_weights(task.layer)
    if weights_KC is not None:
        record["head"] = _head(weights_KC[:, channel], labels)
    return record


def rounded(value: float) -> float:
    """To six digits, which is more than float32 keeps through a network."""
    return float(f"{value:.6g}")


def strongest_patches(survey: Survey, layer: str, channel: int) -> Iterable[tuple[Neuron, float, str]]:
    """(neuron, activation, image id) of the channel's patches, strongest first."""
    found = survey.layers[layer]
    top = found.top
    for m in range(top.k):
        place = (int(top.y_CM[channel, m]), int(top.x_CM[channel, m])) if found.has_map else (None, None)
        yield (
            Neuron(layer, channel, *place),
            float(top.value_CM[channel, m]),
            survey.ids[int(top.image_CM[channel, m])],
        )


def _patch(
    patch: Patch,
    drawn: ChannelImages,
    place: int,
    survey: Survey,
    labels: Sequence[str],
    number: Mapping[str, int],
) -> dict[str, Any]:
    predicted = survey.predicted[number[patch.image_id]]
    return {
        "file": drawn.patch_files[place],
        "gradient": drawn.gradient_files[place] if drawn.gradient_files else "",
        "value": rounded(patch.value),
        "image": patch.image_id,
        "view": view_file(number[patch.image_id]),
        "predicted": labels[predicted] if predicted >= 0 else "",
        "y": patch.neuron.y,
        "x": patch.neuron.x,
        "box": list(patch.box),
    }


def _classes(means: ClassMeans, channel: int, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"index": index, "label": labels[index], "mean": rounded(mean), "images": count}
        for index, mean, count in means.best(channel, _CLASSES)
    ]


def _head(weight_K: Floats, labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    order_K = np.argsort(-weight_K, kind="stable")
    most = min(_WEIGHTS, len(order_K))

    def named(indices: Iterable[int]) -> list[dict[str, Any]]:
        return [{"index": k, "label": labels[k], "weight": rounded(float(weight_K[k]))} for k in indices]

    return {
        "for": named(int(k) for k in order_K[:most] if weight_K[k] > 0),
        "against": named(int(k) for k in order_K[::-1][:most] if weight_K[k] < 0),
    }
