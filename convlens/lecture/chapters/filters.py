"""Filters: the weights of convolutions, those of several networks side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

from convlens.inspection import layer_filters
from convlens.lecture.base import RESULTS, Command, Drawn, Figure, Lecture, chapter
from convlens.lecture.outputs import read_image
from convlens.models import Classifier, load


@chapter("filters", title="Filters", place=1)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """The first layer of all networks, and a deeper one of this one."""
    names = [lecture.model, *lecture.beside]
    output = f"{RESULTS}/first-filters.png"
    models = [part for name in names for part in ("--model", name)]

    def draw() -> Drawn:
        others = [load(name, device="cpu") for name in lecture.beside]
        numbers = [_numbers(classifier, None) for classifier in (lecture.classifier, *others)]
        return Drawn(read_image(lecture.path(output)), {"layers": numbers}, [_fact(each) for each in numbers])

    yield Figure(
        name="first-filters",
        title="Filters of the first layer",
        shows="Each square is the weights of one filter over red, green and blue: the pattern to which it responds "
        "most. Oriented edges, blobs and pairs of opponent colours come out in nearly every network that was trained "
        "on photographs.",
        does_not_show="Grey is a weight of 0, and each filter has a scale of its own: strong and weak filters look "
        "alike. A filter without a pattern may be one that training never used.",
        commands=(Command.of("filters", *models, "-o", output),),
        draw=draw,
    )
    deeper = _deeper(lecture.classifier)
    if deeper:
        yield _deeper_figure(lecture, deeper)


def _deeper_figure(lecture: Lecture, layer: str) -> Figure:
    output = f"{RESULTS}/deeper-filters.png"

    def draw() -> Drawn:
        numbers = _numbers(lecture.classifier, layer)
        return Drawn(read_image(lecture.path(output)), {"layers": [numbers]}, [_fact(numbers)])

    return Figure(
        name="deeper-filters",
        title="Filters of a deeper layer",
        shows="The same for the next convolution that mixes channels: a row a filter, a column a channel of the layer "
        "before, in grey.",
        does_not_show="These weights are not over colours but over channels whose meaning is not in the picture, so "
        "they are hardly interpretable. Activations, patches and activation maximisation say more of deep layers.",
        commands=(Command.of("filters", "--model", lecture.model, "--layer", layer, "-o", output),),
        draw=draw,
    )


def _deeper(classifier: Classifier) -> str:
    """The next convolution with windows over several channels, or without one the next over several; or none."""
    layers = [
        (name, layer)
        for name, layer in classifier.module.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and name != classifier.spec.first_convolution
    ]
    windowed = [name for name, layer in layers if max(layer.kernel_size) > 1]
    return next(iter(windowed or [name for name, _ in layers]), "")


def _numbers(classifier: Classifier, layer: str | None) -> dict[str, Any]:
    filters = layer_filters(classifier, layer)
    weights_OCHW = filters.weights_OCHW
    return {
        "model": filters.model,
        "layer": filters.layer,
        "shape": list(weights_OCHW.shape),
        "smallest": float(weights_OCHW.min()),
        "largest": float(weights_OCHW.max()),
        "mean_of_absolute_values": float(np.abs(weights_OCHW).mean()),
    }


def _fact(numbers: dict[str, Any]) -> tuple[str, str]:
    shape = "×".join(map(str, numbers["shape"]))
    return numbers["model"], f"{numbers['layer']}, {shape}, from {numbers['smallest']:.3g} to {numbers['largest']:.3g}"
