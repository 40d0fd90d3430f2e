"""A real TorchServe with models of grey rectangles and of six channels: REST, gRPC and the health check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from server_fixtures import running

from convlens import image
from convlens.client import Client
from convlens.client.errors import RemoteError
from convlens.client.grpc_client import GrpcClient
from convlens.models import Classifier, load, pack
from convlens.torchserve import archive, health, server
from convlens.torchserve.archive_config import ArchiveOptions

pytestmark = pytest.mark.live

NET = """
from torch import nn

def make():
    layers = nn.Conv2d(CHANNELS, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""
CASES = {"grey": (1, (20, 36)), "scene": (6, (24, 24))}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Classifier]:
    folder, made = tmp_path_factory.mktemp("nets"), {}
    for name, (channels, (height, width)) in CASES.items():
        path = folder / f"{name}.py"
        path.write_text(NET.replace("CHANNELS", str(channels)))
        size = f"size={height}x{width}&resize={height}x{width}&crop_mode=squash"
        made[name] = load(f"file:{path}:make?{size}&mean=.5&std=.25", device="cpu")
    return made


@pytest.fixture(scope="module")
def live(models: dict[str, Classifier], tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    folder, archives = tmp_path_factory.mktemp("server"), {}
    for name, classifier in models.items():
        pack(classifier, folder / name)
        options = ArchiveOptions(batch_size=4, max_batch_delay_ms=1)
        archives[name] = archive.build(name=name, model_dir=folder / name, store=folder / "store", options=options)
    with running(archives, folder / "run") as started:
        yield started


@pytest.fixture(params=["rest", "grpc"])
def connect(request: pytest.FixtureRequest, live: server.Server):
    if request.param == "rest":
        return lambda model: Client(live.inference_url, model=model, key_file=live.key_file)
    return lambda model: GrpcClient(live.grpc_address, model=model, key_file=live.key_file)


def scene(name: str, dtype: str) -> np.ndarray:
    channels, size = CASES[name]
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (*size, channels), dtype=dtype)


def require_plain_torch(reply, classifier: Classifier, unit_HWC: np.ndarray) -> None:
    x = ((torch.tensor(unit_HWC, dtype=torch.float32) - 0.5) / 0.25).permute(2, 0, 1)[None].requires_grad_()
    logits_K = classifier.module(x)[0]
    (gradient,) = torch.autograd.grad(logits_K[1], x)
    np.testing.assert_allclose(reply.explanations[0].result.values_NCHW, gradient.numpy(), atol=1e-6)
    by_index = {prediction.index: prediction.logit for prediction in reply.predictions}
    np.testing.assert_allclose([by_index[k] for k in range(3)], logits_K.detach().numpy(), atol=1e-6)


PARAMS = {"methods": ["saliency"], "target": 1, "topk": 3}


def test_grey_and_colour_files_are_answered_by_a_grey_model(connect, models) -> None:
    grey = scene("grey", "uint8")
    with connect("grey") as client:
        reply = client.explain(image.encode_png(np.repeat(grey, 3, axis=2)), **PARAMS)
    require_plain_torch(reply, models["grey"], grey / 255)


def test_a_tiff_and_an_array_are_answered_by_a_model_of_six_channels(connect, models, tmp_path: Path) -> None:
    values = scene("scene", "uint16")
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, values.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
    with connect("scene") as client:
        for picture in (path, values):
            require_plain_torch(client.explain(picture, **PARAMS), models["scene"], values / 65535)
        assert client.ready()


def test_a_jpeg_is_refused_by_a_model_of_six_channels(connect) -> None:
    with connect("scene") as client, pytest.raises(RemoteError, match="send a TIFF of 6 channels") as caught:
        client.predict(image.encode_jpeg(np.zeros((24, 24, 3), np.uint8)))
    assert caught.value.status == 400


@pytest.mark.parametrize("grpc", [False, True])
def test_the_health_check_asks_every_model_in_its_own_channels(grpc: bool, live: server.Server) -> None:
    address = live.grpc_address if grpc else ""
    line = health.probe_all(live.inference_url, list(CASES), grpc=address, key_file=live.key_file, timeout_s=30)
    assert line.startswith("grey, scene: ")
