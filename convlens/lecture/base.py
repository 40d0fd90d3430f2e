"""What a lecture is made of: figures by commands, in chapters that the files of ``chapters/`` register.

A figure is what one or a few commands of ConvLens wrote. It computes nothing that they do not: so the command below a
figure is the one that made it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from convlens import explain, image
from convlens.errors import RequestError, TargetError, UnsupportedModelError
from convlens.explain import ForwardPass
from convlens.inspection import activations
from convlens.models import Classifier, find_class
from convlens.synth.trunk import trunk
from convlens.types import Bytes8
from convlens.utils.registry import Registry

RESULTS = "results"
_FIRST_TARGETS = ("koala", "African elephant")  # the lecture's own
_MAXIMISED = ("flamingo", "dalmatian", "bell pepper", "lemon", "goose", "cup", "ostrich")

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """Arguments of ``convlens``; paths in them are relative to the lecture's folder, in which it runs."""

    arguments: tuple[str, ...]

    @classmethod
    def of(cls, *arguments: object) -> Command:
        return cls(tuple(map(str, arguments)))

    @property
    def output(self) -> str:
        """The file or folder that it writes."""
        return self.arguments[self.arguments.index("-o") + 1]

    def __str__(self) -> str:
        return shlex.join(("convlens", *self.arguments))


@dataclass(frozen=True)
class Drawn:
    """A figure as it was made: ``numbers`` are plain JSON values, ``facts`` those that the page shows, in words.

    ``pages`` are (title, address) of pages with more, relative to the lecture's folder.
    """

    image_HWC: Bytes8
    numbers: Mapping[str, Any]
    facts: Sequence[tuple[str, str]] = ()
    pages: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Figure:
    """A figure of a chapter, to be made by its ``commands`` and then put together by ``draw`` from what they wrote.

    ``shows`` says what one sees, ``does_not_show`` what would be wrong to see. A ``photograph`` is written as JPEG,
    anything else as PNG. ``needs_classes`` leaves it out for a network that gives embeddings, ``method`` where the
    network cannot be explained by that method.
    """

    name: str
    title: str
    shows: str
    does_not_show: str
    commands: tuple[Command, ...]
    draw: Callable[[], Drawn]
    photograph: bool = False
    needs_classes: bool = False
    method: str = ""


@dataclass(frozen=True)
class Lecture:
    """The network, the images and the sizes. ``folder`` is where the lecture is written.

    ``pictures`` is the folder of images for galleries and patches, ``subjects`` are the images that are explained, and
    ``texture`` is a sample of a texture: paths as the commands take them. ``beside`` are names of other networks whose
    filters stand beside this one's. ``quick`` makes everything small and rough. ``remark`` says what a reader must know
    of the images, in captions that compare many of them.
    """

    folder: Path
    model: str
    classifier: Classifier
    pictures: str
    subjects: tuple[str, ...]
    texture: str
    beside: tuple[str, ...] = ()
    quick: bool = False
    remark: str = ""

    def path(self, address: str) -> Path:
        """The path of a file that a command takes or writes."""
        return self.folder / address  # an absolute one stays as it is

    def command(self, *arguments: object, output: str) -> Command:
        """A command with this lecture's network."""
        return Command.of(*arguments, "--model", self.model, "-o", f"{RESULTS}/{output}")

    def size(self, full: T, quick: T) -> T:
        """The first of the two, or the second in a quick lecture."""
        return quick if self.quick else full

    @cached_property
    def gallery(self) -> Command:
        """The command that embeds all images."""
        # Without acceleration: an export takes longer than the few images, and the network itself is the reference.
        return self.command("gallery", "build", self.pictures, "--no-accelerate", output="gallery")

    @cached_property
    def _trunk(self) -> list[str]:
        return [layer.name for layer in trunk(self.classifier)]

    def layers(self, **depths: float) -> dict[str, str]:
        """Layers with a map at these shares of the depth, by what each is called here, every layer once."""
        chosen: dict[str, str] = {}
        for place, share in depths.items():
            layer = self._trunk[round(share * (len(self._trunk) - 1))]
            if layer not in chosen.values():
                chosen[place] = layer
        return chosen

    def channels(self, layer: str, count: int) -> list[int]:
        """The channels of a layer that the first subject excites most, the strongest first."""
        x_CHW = self._prepared(self.subjects[0]).x_CHW
        return [int(n) for n in activations(self.classifier, x_CHW, layer=layer).ranking[:count]]

    def ranking(self, subject: str) -> list[int]:
        """All classes of the image, the most probable first."""
        logits_K = self._forward(subject).logits_NK[0]
        return [int(n) for n in np.argsort(-logits_K, kind="stable")]

    def label(self, index: int) -> str:
        """How a command takes the class: by its label, or by its index where the label would not do."""
        labels = self.classifier.spec.labels
        label = labels[index]
        # Digits are read as an index, and a dash begins an option.
        unique = labels.count(label) == 1 and label and not label.isdecimal() and not label.startswith("-")
        return label if unique else str(index)

    def fooling_target(self, subject: str) -> str:
        """The lecture's koala, or where the network has none the class in the middle of the image's ranking."""
        ranking = self.ranking(subject)
        wanted = [index for index in self._known(_FIRST_TARGETS) if index != ranking[0]]
        return self.label(wanted[0] if wanted else ranking[max(1, len(ranking) // 2)])

    def maximised(self, count: int) -> list[str]:
        """Classes to maximise: of the lecture's own those that the network has, then those of the subjects; or none."""
        if not self.classifier.spec.labels:
            return []
        known = self._known(_MAXIMISED)
        first = [self.ranking(subject)[0] for subject in self.subjects]
        return [self.label(index) for index in dict.fromkeys([*known, *first])][:count]

    def refusal(self, method: str) -> str:
        """Why the network cannot be explained by the method; empty where it can."""
        try:
            explain.run(method, self._forward(self.subjects[0]))
        except RequestError as error:
            return error.message
        return ""

    def require(self, figure: Figure) -> None:
        """UnsupportedModelError, with the reason, where the network cannot have the figure."""
        if figure.needs_classes:
            self.require_classes()
        reason = self.refusal(figure.method) if figure.method else ""
        if reason:
            raise UnsupportedModelError(reason)

    def require_classes(self) -> None:
        """UnsupportedModelError for a network without classes."""
        if not self.classifier.spec.labels:
            raise UnsupportedModelError("this network gives embeddings and has no classes")

    @property
    def confident_margin(self) -> float:
        """A lead of the logit by which the softmax over all classes cannot be below .9, rounded up to a tenth."""
        # p = 1 / (1 + Σ e^(z_k − z)) ≥ 1 / (1 + (K − 1) e^−m)
        rivals = max(1, self.classifier.spec.classes - 1)
        return math.ceil(10 * math.log(9 * rivals)) / 10

    def caution(self, text: str) -> str:
        """The text, with the remark on the images."""
        return f"{text} {self.remark}".strip()

    def _known(self, names: Sequence[str]) -> list[int]:
        indices = []
        for name in names:
            try:
                indices.append(find_class(self.classifier.spec.labels, name))
            except TargetError:
                continue
        return indices

    def _prepared(self, subject: str) -> image.Prepared:
        spec = self.classifier.spec
        return image.prepare(image.read_channels(self.path(subject), spec.channels), spec)

    def _forward(self, subject: str) -> ForwardPass:
        return ForwardPass(self.classifier, self._prepared(subject).x_CHW[None])


# ---- chapters


@dataclass(frozen=True)
class Chapter:
    """``place`` orders the chapters as the lecture does. ``figures`` may raise RequestError: why there are none."""

    name: str
    title: str
    place: int
    figures: Callable[[Lecture], Iterator[Figure]] = field(repr=False)


_CHAPTERS: Registry[Chapter] = Registry(
    "convlens.lecture.chapters", noun="chapter", error=RequestError, field="chapters"
)
_Figures = Callable[[Lecture], Iterator[Figure]]


def chapter(name: str, *, title: str, place: int) -> Callable[[_Figures], _Figures]:
    """Register ``figures(lecture)`` as a chapter."""

    def register(figures: _Figures) -> _Figures:
        _CHAPTERS.add(name, Chapter(name, title, place, figures))
        return figures

    return register


def chapter_names() -> tuple[str, ...]:
    """All chapters, in the order of the lecture."""
    return tuple(sorted(_CHAPTERS.names(), key=lambda name: _CHAPTERS.get(name).place))


def get_chapter(name: str) -> Chapter:
    """The chapter of that name; RequestError with the names there are for another."""
    return _CHAPTERS.get(name)
