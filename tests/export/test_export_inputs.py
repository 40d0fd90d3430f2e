"""Graphs of rectangles, of other channels and crop modes, against torch; a square's contract stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from convlens.engine.engine import Engine
from convlens.errors import ImageError, ModelError
from convlens.explain import ForwardPass, GraphModel, run
from convlens.explain.onnx_forward import graph_backends
from convlens.explain.sweeps.windows import Windows
from convlens.features.embedder import graph_embedder
from convlens.features.loader import ImageReader
from convlens.image import ChannelImage, prepare
from convlens.models import Classifier, wrap
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.runtime.graph_contract import read_contract
from convlens.runtime.graph_set import open_graphs
from convlens.runtime.onnx_runtime import OnnxRuntime
from export import export
from export.bundle import bundle

SIZE = (24, 40)
CHANNELS = 4


def classifier(channels: int = CHANNELS, size: tuple[int, int] = SIZE, **options) -> Classifier:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return wrap(module, size=size, mean=[0.5] * channels, std=[0.25] * channels, **options)


def images(count: int, size: tuple[int, int] = SIZE, channels: int = CHANNELS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, channels, *size)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return classifier(crop_mode="squash")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    bundle(model, folder, kinds=("embedding", "saliency", "occlusion", "cam"), window=8, stride=8)
    return folder


def test_a_rectangles_contract_says_how_its_images_are_prepared(folder):
    contract = OnnxRuntime(folder / "embedding.onnx", providers="cpu").contract
    assert (contract.input_size, contract.crop_mode, contract.crop_width) == (SIZE, "squash", SIZE[1])
    assert contract.inputs[0].shape == ("N", CHANNELS, *SIZE)


def test_a_model_of_graphs_answers_as_the_network_does(model, folder):
    values_HWC = np.random.default_rng(1).integers(0, 256, (*SIZE, CHANNELS), dtype=np.uint8)
    occlusion = {"method": "occlusion", "options": {"window": 8, "stride": 8}}
    params = parse_params({"methods": ["saliency", "input_x_gradient", "grad_cam", occlusion]})
    request = Request(ChannelImage(values_HWC), params)
    (by_graphs,), (by_torch,) = (
        Engine(each).run([request]) for each in (GraphModel.open(folder, providers="cpu"), model)
    )
    assert by_graphs.placement == by_torch.placement
    for one, other in zip(by_graphs.explanations, by_torch.explanations, strict=True):
        np.testing.assert_allclose(one.result.values_NCHW, other.result.values_NCHW, atol=1e-6)


@pytest.mark.parametrize("strategy", ["full", "incremental"])
def test_an_occlusion_graph_of_a_rectangle_equals_the_sweep_by_torch(model, strategy, tmp_path):
    report = export(model, "occlusion", tmp_path / "occlusion.onnx", window=8, stride=5, batch=4, strategy=strategy)
    graphs = open_graphs([report.path], weights_sha256=model.spec.weights_sha256, providers="cpu",
                         labels_sha256=report.contract.labels_sha256)  # fmt: skip
    (sweep,) = [each for each in graph_backends(graphs) if "graph" in each.kind]
    assert sweep.supports(Windows(*SIZE, 8, 5))
    assert not sweep.supports(Windows(SIZE[0], SIZE[0], 8, 5))
    x_NCHW = images(1)
    expected = run("occlusion", ForwardPass(model, x_NCHW), [2], {"window": 8, "stride": 5}).extras["grid_NRQ"]
    (runtime,) = graphs.all("occlusion")
    with torch.no_grad():
        clean = float(model.module(torch.from_numpy(x_NCHW))[0, 2])
    np.testing.assert_allclose(clean - runtime.sweep(x_NCHW[0], 2), expected[0], atol=1e-6)


def test_a_graph_with_preprocessing_takes_every_channel_in_8_bits(model, tmp_path):
    report = export(model, "embedding", tmp_path / "embedding.onnx", preprocessing=True)
    embedder = graph_embedder(model, report.path)
    reader = ImageReader(embedder.spec, normalised=False)
    values_HWC = np.random.default_rng(1).integers(0, 256, (50, 50, CHANNELS), dtype=np.uint8)
    pixels = reader.prepare("image", ChannelImage(values_HWC)).pixels
    assert (pixels.dtype, pixels.shape) == (np.uint8, (*SIZE, CHANNELS))
    logits_NK, _ = embedder.embed(pixels[None])
    with torch.no_grad():
        x_CHW = torch.from_numpy(prepare(ChannelImage(values_HWC), model.spec).x_CHW)
        np.testing.assert_allclose(logits_NK, model.module(x_CHW[None]), atol=1e-6)


def test_features_by_a_graph_of_another_size_are_of_images_of_that_size(model, tmp_path):
    report = export(model, "embedding", tmp_path / "embedding.onnx", input_size=(16, 48))
    embedder = graph_embedder(model, report.path)
    assert (embedder.spec.input_size, embedder.spec.resize_size) == ((16, 48), (16, 48))
    values_HWC = np.random.default_rng(1).integers(0, 256, (16, 48, CHANNELS), dtype=np.uint8)
    pixels = ImageReader(embedder.spec, normalised=True).prepare("image", ChannelImage(values_HWC)).pixels
    x_CHW = torch.tensor((values_HWC / 255 - 0.5) / 0.25, dtype=torch.float32).permute(2, 0, 1)
    with torch.no_grad():
        np.testing.assert_allclose(embedder.embed(pixels[None])[0], model.module(x_CHW[None]), atol=1e-6)


def test_a_deep_image_is_refused_where_a_graph_takes_8_bits(model):
    deep = ChannelImage(np.random.default_rng(1).random((50, 50, CHANNELS), np.float32))
    with pytest.raises(ImageError, match="more than 8 bits"):
        ImageReader(model.spec, normalised=False).prepare("image", deep)


@pytest.mark.parametrize("input_size", [32, (16, 48)])
def test_a_graph_may_be_of_another_size_than_the_model(model, input_size, tmp_path):
    report = export(model, "scores", tmp_path / "scores.onnx", input_size=input_size)
    size = (32, 32) if input_size == 32 else input_size
    assert report.contract.input_size == size
    x_NCHW = images(2, size)
    with torch.no_grad():
        expected = model.module(torch.from_numpy(x_NCHW)).numpy()
    np.testing.assert_allclose(OnnxRuntime(report.path, providers="cpu").logits(x_NCHW), expected, atol=1e-6)


def test_the_contract_of_a_square_centre_crop_has_no_new_field(tmp_path):
    report = export(classifier(3, (24, 24)), "scores", tmp_path / "scores.onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert metadata["convlens.format"] == "1"
    # the fields that version 0.1 wrote, in its order
    assert list(json.loads(metadata["convlens.contract"])) == [
        "kind", "model", "weights_sha256", "labels_sha256", "classes", "crop", "resize", "interpolation", "mean", "std",
        "layers", "inputs", "outputs", "precision", "preprocessing", "tolerance", "versions", "sweep",
    ]  # fmt: skip
    assert read_contract(metadata, graph="it") == report.contract


def test_a_contract_of_other_images_is_of_a_format_that_older_readers_refuse(folder):
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "embedding.onnx").metadata_props}
    assert metadata["convlens.format"] == "2"
    assert {"crop_mode", "crop_width", "resize_width"} <= json.loads(metadata["convlens.contract"]).keys()
    with pytest.raises(ModelError, match="this ConvLens reads 1 and 2"):
        read_contract({**metadata, "convlens.format": "3"}, graph="it")
