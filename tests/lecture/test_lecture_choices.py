"""What a lecture chooses by itself: classes, layers, channels and how sure a confident fooling image must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
import small_lecture_network
import torch

from convlens import image
from convlens.errors import UnsupportedModelError
from convlens.lecture import Command, Lecture
from convlens.models import Classifier, load

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load(f"file:{small_lecture_network.__file__}:make?size=64&resize=64", device="cpu")


def lecture(classifier: Classifier, labels: tuple[str, ...] | None = None) -> Lecture:
    spec = classifier.spec if labels is None else replace(classifier.spec, labels=labels)
    texture = subject = str(CHELSEA)
    return Lecture(Path(), "test", replace(classifier, spec=spec), str(CHELSEA.parent), (subject,), texture)


def logits(classifier: Classifier) -> np.ndarray:
    x_CHW = image.prepare(image.read(CHELSEA), classifier.spec).x_CHW
    with torch.no_grad():
        return classifier.module(torch.from_numpy(x_CHW)[None])[0].numpy()


def names(changed: dict[int, str]) -> tuple[str, ...]:
    return tuple(changed.get(n, f"kind {n}") for n in range(10))


def test_the_fooling_target_is_the_koala_where_there_is_one(classifier: Classifier) -> None:
    other = int(np.argmin(logits(classifier)))
    assert lecture(classifier, names({other: "koala"})).fooling_target(str(CHELSEA)) == "koala"


def test_a_koala_is_fooled_into_an_elephant(classifier: Classifier) -> None:
    best, other = int(np.argmax(logits(classifier))), int(np.argmin(logits(classifier)))
    labels = names({best: "koala", other: "African elephant"})
    assert lecture(classifier, labels).fooling_target(str(CHELSEA)) == "African elephant"


def test_without_either_the_target_is_the_middle_of_the_ranking(classifier: Classifier) -> None:
    middle = np.argsort(-logits(classifier))[5]
    assert lecture(classifier).fooling_target(str(CHELSEA)) == classifier.spec.labels[middle]


@pytest.mark.parametrize("label", ["7", "-o", "", "kind 1"], ids=["digits", "option", "empty", "twice"])
def test_a_label_that_a_command_would_misread_is_given_by_its_index(classifier: Classifier, label: str) -> None:
    assert lecture(classifier, names({3: label})).label(3) == "3"


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_confident_margin_gives_nine_tenths_in_the_worst_case(classifier: Classifier, classes: int) -> None:
    margin = lecture(classifier, tuple(f"kind {n}" for n in range(classes))).confident_margin
    worst = torch.zeros(classes, dtype=torch.float64)  # all others equally near
    worst[0] = margin
    assert 0.9 <= float(worst.softmax(0)[0]) < 0.92


def test_layers_are_at_the_shares_of_the_depth_and_each_comes_once(classifier: Classifier) -> None:
    # Its layers with a map that widens: convolutions 0, 4, 7, 11 and poolings 3, 10, in running order.
    plan = lecture(classifier)
    assert plan.layers(first=0.0, middle=0.5, last=1.0) == {"first": "0", "middle": "4", "last": "11"}
    assert plan.layers(first=0.0, again=0.01) == {"first": "0"}


def test_channels_are_those_with_the_largest_activation(classifier: Classifier) -> None:
    x_CHW = image.prepare(image.read(CHELSEA), classifier.spec).x_CHW
    with torch.no_grad():
        maps = classifier.module[:5](torch.from_numpy(x_CHW)[None])[0]
    strongest = torch.argsort(-maps.amax((1, 2)), stable=True)[:4].tolist()
    assert lecture(classifier).channels("4", 4) == strongest


def test_a_network_without_classes_has_none_to_maximise_and_says_so(classifier: Classifier) -> None:
    plan = lecture(classifier, ())
    assert plan.maximised(3) == []
    with pytest.raises(UnsupportedModelError, match="gives embeddings and has no classes"):
        plan.require_classes()


def test_a_command_reads_as_it_is_typed() -> None:
    command = Command.of("fool", "my cat.jpg", "--target", "African elephant", "-o", "results/fooling")
    assert str(command) == "convlens fool 'my cat.jpg' --target 'African elephant' -o results/fooling"
    assert command.output == "results/fooling"
