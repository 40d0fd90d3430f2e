"""The pass over the images: who excites each channel, and which classes it speaks for, beside plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import classifier
from small_atlases import FIRST, LAST, images_with_a_broken_one, small_model
from small_evaluations import SIDE, write_images
from torch import nn

from convlens import image
from convlens.atlas.survey import Survey
from convlens.errors import RequestError
from convlens.features.image_list import find_images
from convlens.inspection.patches import find_patches
from convlens.models import Classifier


def surveyed(model: Classifier, images: Path, k: int = 3, **options: Any) -> Survey:
    survey = Survey(model, [FIRST, LAST], k=k)
    survey.run(find_images([images]), **{"classes": {}, **options})
    return survey


def plain_pass(model: Classifier, images: Path, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """What the first parts of the network give for all images, one by one, and the predicted classes."""
    rows, classes = [], []
    for path in sorted(images.glob("[0-9]*.png")):
        x_NCHW = torch.from_numpy(image.prepare(image.read(path), model.spec).x_CHW)[None]
        with torch.no_grad():
            rows.append(model.module[:parts](x_NCHW)[0].numpy())
            classes.append(int(model.module(x_NCHW).argmax()))
    return np.stack(rows), np.array(classes)


def test_the_strongest_images_are_those_that_patches_are_found_in(tmp_path: Path) -> None:
    model, images = small_model(), write_images(tmp_path / "images", 20)
    survey = surveyed(model, images)
    for layer in (FIRST, LAST):
        patches = find_patches(model, find_images([images]), layer=layer, k=3)
        top = survey.layers[layer].top
        for channel, best in patches.by_channel.items():
            assert [survey.ids[n] for n in top.image_CM[channel]] == [patch.image_id for patch in best]
            places = [(patch.neuron.y, patch.neuron.x) for patch in best]
            assert list(zip(top.y_CM[channel], top.x_CM[channel], strict=True)) == places
            np.testing.assert_allclose(top.value_CM[channel], [patch.value for patch in best], rtol=1e-5)


def test_means_and_counts_are_those_of_plain_torch(tmp_path: Path) -> None:
    model, images = small_model(), write_images(tmp_path / "images", 20)
    labels = {f"{n:02}.png": n % 2 for n in range(20)}
    survey = surveyed(model, images, classes=labels)
    for layer, parts in ((FIRST, 2), (LAST, 4)):
        maps_NCHW, predicted_N = plain_pass(model, images, parts)
        mean_NC = maps_NCHW.mean((2, 3))
        found = survey.layers[layer]
        np.testing.assert_allclose(found.mean_C / 20, mean_NC.mean(0), rtol=1e-5)
        assert found.active_C.tolist() == (maps_NCHW.max((2, 3)) > 0).sum(0).tolist()
        assert survey.predicted == predicted_N.tolist()
        for means, class_N in ((found.predicted, predicted_N), (found.labelled, np.arange(20) % 2)):
            for index, mean, count in means.best(2, 9):
                assert count == (class_N == index).sum()
                assert mean == pytest.approx(mean_NC[class_N == index, 2].mean(), rel=1e-5)
        _, _, counts = found.peaks.bars(0)
        assert sum(counts) == 20


def test_only_the_layer_whose_means_the_head_reads_has_its_weights(tmp_path: Path) -> None:
    model = small_model()
    survey = surveyed(model, write_images(tmp_path / "images", 3))
    assert survey.head_weights(FIRST) is None
    np.testing.assert_array_equal(survey.head_weights(LAST), model.module[6].weight.detach().numpy())


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [16, 32])
def test_an_interrupted_pass_ends_with_what_one_pass_gives(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convlens.atlas.survey._SAVE_S", 0.0)
    model, images = small_model(), images_with_a_broken_one(tmp_path / "images", 36)
    whole = surveyed(model, images)

    def cut(done: int, _: int) -> None:
        if done >= stop:
            raise Interrupted

    with pytest.raises(Interrupted):
        surveyed(model, images, state=tmp_path / "state.npz", on_images=cut)
    begun: list[int] = []
    resumed = surveyed(model, images, state=tmp_path / "state.npz", on_images=lambda done, _: begun.append(done))
    assert begun[0] == stop - 16  # the state is written behind the report, so a batch is made again
    assert [id for id, _ in resumed.unreadable] == ["broken.png"]
    for name in ("ids", "sha256", "predicted", "unreadable"):
        assert getattr(resumed, name) == getattr(whole, name)
    for layer in (FIRST, LAST):
        there, here = resumed.layers[layer].state_dict(), whole.layers[layer].state_dict()
        assert all(np.array_equal(there[name], here[name]) for name in here)


def test_a_network_without_classes_has_no_means_by_class(tmp_path: Path) -> None:
    model = classifier(small_model().module[:6], classes=0, crop=SIDE, embedding_layer=":output", gradcam_layer=LAST)
    survey = surveyed(model, write_images(tmp_path / "images", 3))
    assert survey.layers[LAST].predicted.best(0, 9) == []
    assert survey.head_weights(LAST) is None


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.first(x_NCHW).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.mark.parametrize(
    ("layer", "message"), [("inner", "neither a map of channels nor a row"), ("frist", "did you mean first")]
)
def test_layers_without_channels_are_refused(layer: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Survey(classifier(ChannelsLast(), classes=3, crop=SIDE), [layer], k=1)
