"""Exported graphs against torch: every kind, batch sizes that were not traced, sizes, precisions, bytes as input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
import skimage.data
import torch
from graph_cache import GraphCache
from PIL import Image
from torch import nn

from convlens import image
from convlens.models import Classifier, load
from convlens.runtime.onnx_runtime import OnnxRuntime
from export.exporter import export


def mixed() -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(nets.Mixed(), classes=4, crop=12)


def pictures(count: int, side: int = 12) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, side, side)).astype(np.float32)


def in_torch(classifier: Classifier, x_NCHW: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return classifier.module(torch.tensor(x_NCHW)).numpy()


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    # float32 sums in another order: relative to the largest value, not to each.
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def mixed_scores(exported: GraphCache) -> OnnxRuntime:
    return OnnxRuntime(exported(mixed(), "scores"), providers="cpu")


@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_scores_are_torchs_for_any_number_of_pictures(mixed_scores: OnnxRuntime, count: int) -> None:
    x_NCHW = pictures(count)
    close(mixed_scores.logits(x_NCHW), in_torch(mixed(), x_NCHW))


def test_scores_can_be_added_up_by_hand(tmp_path: Path) -> None:
    net = nets.classifier(nets.Linear(4, 3), classes=3, crop=4)
    net.module.head.weight.data.fill_(1.0)
    net.module.head.bias.data = torch.tensor([0.0, 10.0, 20.0])
    export(net, "scores", tmp_path / "sum.onnx")
    x_NCHW = np.ones((2, 3, 4, 4), np.float32) * np.array([1, 2], np.float32)[:, None, None, None]
    found = OnnxRuntime(tmp_path / "sum.onnx").logits(x_NCHW)
    np.testing.assert_array_equal(found, [[48, 58, 68], [96, 106, 116]])


def test_features_are_what_flowed_out_of_the_layers_before_anything_overwrote_it(tmp_path: Path) -> None:
    # in place: what the convolution gave is gone by the end of the pass
    net = nets.classifier(nets.Sequential(nn.ReLU(inplace=True)), classes=3)
    export(net, "features", tmp_path / "features.onnx", layers=["middle", "first"])
    x_NCHW = pictures(3, 8)
    found = OnnxRuntime(tmp_path / "features.onnx").features(x_NCHW)
    with torch.no_grad():
        first_NCHW = net.module.first(torch.tensor(x_NCHW)).numpy()
    assert list(found) == ["middle", "first"]
    assert (first_NCHW < 0).any()
    close(found["first"], first_NCHW)
    close(found["middle"], first_NCHW.clip(min=0))


def test_the_embedding_is_the_heads_input_averaged_over_space_and_comes_with_the_logits(tmp_path: Path) -> None:
    net = load("torchvision:squeezenet1_1:untrained?size=64", device="cpu")  # its head is a convolution, over maps
    report = export(net, "embedding", tmp_path / "embedding.onnx")
    x_NCHW = pictures(3, 64)
    logits_NK, embedding_ND = OnnxRuntime(report.path).logits_and_embeddings(x_NCHW)
    with torch.no_grad():
        close(embedding_ND, net.module.features(torch.tensor(x_NCHW)).mean((2, 3)).numpy())
    close(logits_NK, in_torch(net, x_NCHW))
    assert report.contract.layers == ("classifier.1",)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("default") / "embedding.onnx"
    return export(load(device="cpu"), "embedding", path, preprocessing=True).path


@pytest.mark.slow
def test_the_default_model_agrees_on_a_real_photograph_given_as_bytes(default: Path) -> None:
    net = load(device="cpu")
    prepared = image.prepare(Image.fromarray(skimage.data.chelsea()), net.spec)
    found = OnnxRuntime(default).logits(prepared.view_HWC[None])
    close(found, in_torch(net, prepared.x_CHW[None]))
    assert net.spec.labels[found.argmax()] == "tiger cat"


@pytest.mark.slow
def test_a_padding_that_depends_on_the_size_becomes_part_of_its_convolution(default: Path) -> None:
    # timm's "same" padding in the default model; as a Pad of its own it made a sweep a third slower
    operators = {node.op_type for node in onnx.load(default).graph.node}
    assert "Conv" in operators
    assert "Pad" not in operators
    assert "BatchNormalization" not in operators


@pytest.mark.parametrize("opset", [18, 23])
def test_the_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    net = nets.classifier(nets.Sequential(nn.ReLU()), classes=3, crop=12)
    export(net, "scores", tmp_path / "opset.onnx", opset=opset)
    found = {entry.domain: entry.version for entry in onnx.load(tmp_path / "opset.onnx").opset_import}
    assert found[""] == opset
    x_NCHW = pictures(2)
    close(OnnxRuntime(tmp_path / "opset.onnx").logits(x_NCHW), in_torch(net, x_NCHW))


def test_another_input_size_is_honoured_and_stated(tmp_path: Path) -> None:
    report = export(mixed(), "scores", tmp_path / "large.onnx", input_size=20)
    x_NCHW = pictures(2, 20)
    close(OnnxRuntime(report.path).logits(x_NCHW), in_torch(mixed(), x_NCHW))
    assert (report.contract.crop, report.contract.inputs[0].shape) == (20, ("N", 3, 20, 20))


@pytest.fixture(scope="module")
def four_only(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    path = tmp_path_factory.mktemp("four") / "four.onnx"
    return OnnxRuntime(export(mixed(), "scores", path, dynamic_batch=False, batch=4).path)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_graph_bound_to_one_batch_size_still_answers_any_number(four_only: OnnxRuntime, count: int) -> None:
    assert four_only.contract.batch == 4
    x_NCHW = pictures(count)
    close(four_only.logits(x_NCHW), in_torch(mixed(), x_NCHW))


@pytest.mark.parametrize("kind", ["scores", "embedding", "occlusion"])
def test_half_keeps_half_the_bytes_between_float32_inputs_and_outputs(tmp_path: Path, kind: Any) -> None:
    net = nets.classifier(nets.Sequential(nn.Conv2d(4, 4, 9, padding=4)), classes=3)
    half = export(net, kind, tmp_path / "half.onnx", half=True, window=4, stride=2)
    assert half.contract.precision == "half"
    assert {port.dtype for port in half.contract.outputs} == {"float32"}
    assert _weight_types(half.path) == {"FLOAT16"}
    assert half.worst.relative > 1e-6  # it would be 0 or float32's if the weights were not half
    assert all(parameter.dtype == torch.float32 for parameter in net.module.parameters())


def _weight_types(path: Path) -> set[str]:
    graph = onnx.load(path).graph
    bodies = [node.attribute[0].g for node in graph.node if node.op_type == "Loop"]
    held = [*graph.initializer, *(one for body in bodies for one in body.initializer)]
    return {onnx.TensorProto.DataType.Name(one.data_type) for one in held if one.data_type in (1, 10) and one.dims}
