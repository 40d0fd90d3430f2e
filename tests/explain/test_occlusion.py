"""Occlusion against closed forms, a slow twin, captum where it is right, and real photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from measured_boxes import VIEW_BOXES
from torch import nn

from convlens import image
from convlens.errors import ModelError, RequestError
from convlens.explain import ForwardPass, run
from convlens.explain.sweeps import backends
from convlens.explain.sweeps.windows import Windows
from convlens.models import Classifier, load
from convlens.types import Attribution, ModelSpec

SPEC = ModelSpec("test", 12, 12, "bilinear", (0.5,) * 3, (0.5,) * 3, tuple("abcd"), "head", "conv", "conv", "0" * 64)


class Linear(nn.Module):
    """logit_k = Σ W_k · x: what hiding a window costs can be written down."""

    def __init__(self, side: int = 12, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, side, bias=False)
        self.head = nn.Flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().amax((2, 3)))


def classifier(module: nn.Module) -> Classifier:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return Classifier(module.double().eval(), SPEC, torch.device("cpu"), "test")


def pictures(count: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, height, width))


def occluded(model: Classifier, x_NCHW: np.ndarray, targets: list[int] | None = None, **options: object) -> Attribution:
    result = run("occlusion", ForwardPass(model, x_NCHW), targets, options)
    assert isinstance(result, Attribution)
    return result


@pytest.mark.parametrize("fill", [0.0, -1.5])
def test_a_linear_net_loses_what_the_window_contributed(fill: float) -> None:
    model, x_NCHW = classifier(Linear()), pictures(2)
    weights_KCHW = model.module.conv.weight.detach().numpy()
    result = occluded(model, x_NCHW, [1, 3], window=5, stride=3, fill=fill)
    for n, target in enumerate((1, 3)):
        for r, top in enumerate((0, 3, 6, 7)):  # 12 - 5 = 7: the last window is flush with the edge
            for q, left in enumerate((0, 3, 6, 7)):
                inside = np.s_[:, top : top + 5, left : left + 5]
                expected = (weights_KCHW[target][inside] * (x_NCHW[n][inside] - fill)).sum()
                np.testing.assert_allclose(result.extras["grid_NRQ"][n, r, q], expected, rtol=1e-10, atol=1e-12)


def test_the_map_is_the_mean_over_the_windows_that_cover_a_pixel() -> None:
    result = occluded(classifier(Convolutional()), pictures(1), [2], window=5, stride=3)
    grid_RQ, starts = result.extras["grid_NRQ"][0], (0, 3, 6, 7)
    for y in range(12):
        for x in range(12):
            covering = [
                grid_RQ[r, q]
                for r, top in enumerate(starts)
                for q, left in enumerate(starts)
                if top <= y < top + 5 and left <= x < left + 5
            ]
            np.testing.assert_allclose(result.values_NCHW[0, 0, y, x], np.mean(covering), rtol=1e-12)


def test_where_captum_has_no_edge_to_treat_it_agrees() -> None:
    model, x_NCHW = classifier(Convolutional()), pictures(2)
    ours = occluded(model, x_NCHW, [0, 3], window=4, stride=2, fill=0.25)
    theirs = Occlusion(model.module).attribute(
        torch.as_tensor(x_NCHW), sliding_window_shapes=(3, 4, 4), strides=(3, 2, 2), baselines=0.25, target=[0, 3]
    )
    # captum returns float32 whatever it is given.
    np.testing.assert_allclose(ours.values_NCHW[:, 0], theirs.numpy()[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 7, 1000])
def test_the_map_does_not_depend_on_the_batch_size(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x_NCHW = classifier(Convolutional()), pictures(2)
    usual = occluded(model, x_NCHW, [0, 1], window=4, stride=1)
    monkeypatch.setattr(backends, "BATCH", batch)
    # float64: only the order of additions inside a matrix product may differ.
    np.testing.assert_allclose(
        occluded(model, x_NCHW, [0, 1], window=4, stride=1).values_NCHW, usual.values_NCHW, rtol=1e-10, atol=1e-12
    )


def test_a_row_gets_in_company_what_it_gets_alone() -> None:
    model, x_NCHW = classifier(Convolutional()), pictures(3)
    together = occluded(model, x_NCHW, [0, 1, 2], window=6, stride=3)
    alone = occluded(model, x_NCHW[1:2], [1], window=6, stride=3)
    np.testing.assert_allclose(together.values_NCHW[1], alone.values_NCHW[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (10, 4, 3, [0, 3, 6]),  # fits exactly
        (10, 4, 4, [0, 4, 6]),  # the last one moves back, flush with the edge
        (10, 4, 1, [0, 1, 2, 3, 4, 5, 6]),
        (10, 10, 5, [0]),
        (10, 16, 8, [0]),  # larger than the picture: one window hides it all
        (224, 32, 16, list(range(0, 193, 16))),
    ],
)
def test_windows_start_where_one_would_put_them_by_hand(
    length: int, window: int, stride: int, starts: list[int]
) -> None:
    windows = Windows(length, 2 * length, window, stride)
    assert windows.tops.tolist() == starts
    assert len(windows) == len(windows.corners)


@pytest.mark.parametrize(("height", "width"), [(17, 23), (12, 40), (5, 5)])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (4, 4), (5, 3), (32, 32)])
def test_every_pixel_is_covered(height: int, width: int, window: int, stride: int) -> None:
    windows = Windows(height, width, window, stride)
    covered_HW = np.zeros((height, width))
    for top, left in windows.corners:
        covered_HW[top : top + window, left : left + window] += 1
    assert covered_HW.min() >= 1
    # Every window worth 1: then the mean over the windows that cover a pixel is 1, too.
    ones_NRQ = np.ones((1, len(windows.tops), len(windows.lefts)))
    np.testing.assert_allclose(windows.mean_map(ones_NRQ), 1.0, rtol=1e-12)


@pytest.mark.parametrize(("window", "stride"), [(32, 48), (32, 33), (32, 0), (32, -1), (0, 1), (-4, 1)])
def test_a_stride_that_skips_pixels_or_an_empty_window_is_refused(window: int, stride: int) -> None:
    with pytest.raises(RequestError, match=r"use 1"):
        Windows(224, 224, window, stride)


def test_an_image_that_is_not_square_gets_a_map_of_its_own_shape() -> None:
    result = occluded(classifier(Convolutional()), pictures(1, 9, 14), [0], window=4, stride=3)
    assert result.values_NCHW.shape == (1, 1, 9, 14)
    assert result.extras["grid_NRQ"].shape == (1, 3, 5)  # tops 0 3 5; lefts 0 3 6 9 10


def test_probability_drops_are_differences_of_softmaxes() -> None:
    model, x_NCHW = classifier(Convolutional()), pictures(1)
    result = occluded(model, x_NCHW, [1], window=6, stride=6, score="probability")
    hidden = x_NCHW.copy()
    hidden[:, :, 6:, :6] = 0
    with torch.no_grad():
        before, after = (model.module(torch.as_tensor(x)).softmax(1)[0, 1].item() for x in (x_NCHW, hidden))
    np.testing.assert_allclose(result.extras["grid_NRQ"][0, 1, 0], before - after, rtol=1e-10)
    np.testing.assert_allclose(result.score_N, [before], rtol=1e-12)


def test_without_a_target_the_predicted_class_is_explained_never_class_0() -> None:
    model, x_NCHW = classifier(Convolutional()), pictures(5)
    with torch.no_grad():
        predicted = model.module(torch.as_tensor(x_NCHW)).argmax(1).tolist()
    assert set(predicted) != {0}
    assert occluded(model, x_NCHW, None, window=6, stride=6).target_N.tolist() == predicted


def test_the_image_handed_in_is_left_as_it_was() -> None:
    x_NCHW = torch.as_tensor(pictures(1))
    before = x_NCHW.clone()
    run("occlusion", ForwardPass(classifier(Convolutional()), x_NCHW), [0], {"window": 4, "stride": 4})
    assert torch.equal(x_NCHW, before)


def test_scores_that_are_not_finite_are_an_error_not_a_map() -> None:
    model = classifier(Convolutional())
    with torch.no_grad():
        model.module.head.bias[1] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        occluded(model, pictures(1), [0], window=4, stride=4)


# --- real photographs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squeezenet(test_data: Path) -> Classifier:
    weights = test_data / "weights" / "squeezenet1_0-imagenet.safetensors"
    return load(f"torchvision:squeezenet1_0?weights={weights}", device="cpu")


@pytest.mark.parametrize("name", VIEW_BOXES)
def test_the_largest_drop_lies_on_the_animal_or_the_kart(name: str, squeezenet: Classifier, test_data: Path) -> None:
    with (test_data / "data" / "imagenet" / "labels.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["class_name"] == name)
    prepared = image.prepare(image.read(test_data / "data" / "imagenet" / row["file"]), squeezenet.spec)
    forward = ForwardPass(squeezenet, prepared.x_CHW[None])
    options = {"window": 48, "stride": 16, "score": "probability"}
    result = run("occlusion", forward, [int(row["class_index"])], options)
    assert isinstance(result, Attribution)
    windows = Windows(224, 224, 48, 16)
    top, left = windows.corners[int(result.extras["grid_NRQ"][0].argmax())]
    box = VIEW_BOXES[name]
    assert box[0] <= left + 24 <= box[2]
    assert box[1] <= top + 24 <= box[3]
    assert result.extras["grid_NRQ"].max() > 0.15  # hiding it costs the class at least this much probability
