"""Occlusion graphs against closed forms and against convlens's own occlusion."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn

from convlens import ForwardPass, image, run
from convlens.errors import RequestError, TargetError
from convlens.explain.sweeps.windows import Windows
from convlens.models import Classifier, load
from convlens.runtime.onnx_runtime import OnnxRuntime
from export.exporter import export
from export.sweep_loop import chunk_size

STARTS = (0, 3, 6, 7)  # windows of 5, stride 3, side 12: the last sits flush with the edge


def linear() -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(nets.Linear(12, 4), classes=4, crop=12)


def convolutional() -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(nets.Sequential(nn.ReLU()), classes=3, crop=12)


def picture(seed: int = 0, side: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, side, side)).astype(np.float32)


@pytest.fixture(scope="module")
def linear_sweep(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    path = tmp_path_factory.mktemp("sweep") / "linear.onnx"
    return OnnxRuntime(export(linear(), "occlusion", path, window=5, stride=3).path)


@pytest.mark.parametrize(("target", "fill"), [(0, 0.0), (3, 0.0), (2, -1.5)])
def test_each_window_of_a_linear_net_scores_what_is_left(linear_sweep: OnnxRuntime, target: int, fill: float) -> None:
    head, x_CHW = linear().module.head, picture()
    weight_CHW = head.weight[target].detach().numpy().reshape(3, 12, 12)
    found_RQ = linear_sweep.sweep(x_CHW, target, fill=fill)
    assert found_RQ.shape == (4, 4)
    for r, top in enumerate(STARTS):
        for q, left in enumerate(STARTS):
            hidden_CHW = x_CHW.copy()
            hidden_CHW[:, top : top + 5, left : left + 5] = fill
            expected = (weight_CHW * hidden_CHW).sum() + head.bias[target].item()
            np.testing.assert_allclose(found_RQ[r, q], expected, atol=1e-5)  # 432 products of float32


def test_probabilities_are_the_softmax_over_all_classes(linear_sweep: OnnxRuntime) -> None:
    logits_RQK = np.stack([linear_sweep.sweep(picture(), target) for target in range(4)], axis=-1)
    expected = np.exp(logits_RQK) / np.exp(logits_RQK).sum(-1, keepdims=True)
    found = np.stack([linear_sweep.sweep(picture(), target, score="probability") for target in range(4)], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 4, 7, 16, 100])
def test_the_grid_does_not_depend_on_the_chunk_size(tmp_path: Path, batch: int) -> None:
    report = export(convolutional(), "occlusion", tmp_path / "chunks.onnx", window=5, stride=3, batch=batch)
    found_RQ = OnnxRuntime(report.path).sweep(picture(), 2)
    np.testing.assert_allclose(found_RQ, _hidden_scores(convolutional(), picture(), 2, 5, 3), atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (12, 12), (40, 7), (6, 6)])
def test_any_geometry_gives_convlens_own_grid(tmp_path: Path, window: int, stride: int) -> None:
    report = export(convolutional(), "occlusion", tmp_path / "geometry.onnx", window=window, stride=stride, batch=32)
    found_RQ = OnnxRuntime(report.path).sweep(picture(), 1)
    np.testing.assert_allclose(found_RQ, _hidden_scores(convolutional(), picture(), 1, window, stride), atol=1e-6)


def _hidden_scores(model: Classifier, x_CHW: np.ndarray, target: int, window: int, stride: int) -> np.ndarray:
    result = run("occlusion", ForwardPass(model, x_CHW[None]), [target], {"window": window, "stride": stride})
    return result.score_N[0] - result.extras["grid_NRQ"][0]


def test_a_photograph_given_as_bytes_is_swept_as_convlens_does_it(tmp_path: Path) -> None:
    model = load("torchvision:resnet18:untrained?size=64", device="cpu")
    prepared = image.prepare(Image.fromarray(skimage.data.chelsea()), model.spec)
    path = export(model, "occlusion", tmp_path / "bytes.onnx", preprocessing=True).path
    found_RQ = OnnxRuntime(path).sweep(prepared.view_HWC, 7)
    expected_RQ = _hidden_scores(model, prepared.x_CHW, 7, 32, 16)
    # the bound: 1e-4 of the largest score
    np.testing.assert_allclose(found_RQ, expected_RQ, rtol=0, atol=1e-4 * np.abs(expected_RQ).max())


def test_a_target_that_there_is_not_is_refused(linear_sweep: OnnxRuntime) -> None:
    for target in (-1, 4):
        with pytest.raises(TargetError, match=r"0\.\.3"):
            linear_sweep.sweep(picture(), target)


def test_an_unknown_score_is_refused(linear_sweep: OnnxRuntime) -> None:
    with pytest.raises(RequestError, match="logit, probability"):
        linear_sweep.sweep(picture(), 0, score="loss")  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "expected"), [(1, 1), (8, 8), (13, 13), (100, 85), (169, 169), (500, 169)])
def test_chunks_are_even(batch: int, expected: int) -> None:
    # 169 windows: 2 turns of 85 rather than one of 100 and one of 69
    assert chunk_size(Windows(224, 224, 32, 16), batch) == expected
