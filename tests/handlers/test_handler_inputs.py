"""The handlers with models of rectangles and of other channels than RGB: TIFF and npy bytes at their doors."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from ts.context import Context, RequestProcessor

from convlens import image
from convlens.errors import RequestError
from convlens.models import load, pack
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.serving.handler import BatchHandler, require_sendable
from export.bundle import bundle
from handlers.convlens_handler import ConvLensHandler
from handlers.onnx_handler import OnnxHandler

SIZE, CHANNELS = (20, 28), 6
NET = f"""
from torch import nn

def make():
    layers = nn.Conv2d({CHANNELS}, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    options = f"size={SIZE[0]}x{SIZE[1]}&resize={SIZE[0]}x{SIZE[1]}&crop_mode=squash&mean=.5&std=.25"
    return load(f"file:{path}:make?{options}&display_channels=5,3,1", device="cpu")


def context(folder: Path) -> Context:
    manifest = {"model": {"modelName": "m", "modelVersion": "1.0"}}
    return Context("m", str(folder), manifest, 8, None, "0.12", model_yaml_config={})


@pytest.fixture(scope="module", params=["torch", "onnx"])
def handler(request: pytest.FixtureRequest, model, tmp_path_factory: pytest.TempPathFactory) -> BatchHandler:
    """As an archive makes it."""
    folder, made = tmp_path_factory.mktemp("archive"), OnnxHandler() if request.param == "onnx" else ConvLensHandler()
    if request.param == "onnx":
        (folder / "graphs").mkdir()
        bundle(model, folder / "graphs", kinds=("embedding", "saliency", "guided_backprop"))
    else:
        pack(model, folder / "model")
    made.initialize(context(folder))
    return made


def handled(handler: BatchHandler, *items: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    at = context(Path())
    at.request_processor = [RequestProcessor({}) for _ in items]
    texts = handler.handle(list(items), at)
    return [(at.get_response_status(n)[0], json.loads(text)) for n, text in enumerate(texts)]


VALUES = np.random.default_rng(0).integers(0, 65536, (*SIZE, CHANNELS), dtype=np.uint16)


def tiff(values: np.ndarray, planes: bool) -> bytes:
    file = io.BytesIO()
    stored, layout = (values.transpose(2, 0, 1), "separate") if planes else (values, "contig")
    tifffile.imwrite(file, stored, photometric="minisblack", planarconfig=layout)
    return file.getvalue()


def test_every_form_of_the_same_scene_gets_plain_torchs_answer(handler, model):
    params = json.dumps({"methods": ["saliency"], "target": 2, "topk": 3, "output": ["array", "overlay"]}).encode()
    npy = image.encode_npy(VALUES)
    bodies = [
        {"data": npy, "params": params},
        {"data": tiff(VALUES, planes=True), "params": params},
        {"data": tiff(VALUES, planes=False), "params": params},
        {"body": {"data": {"b64": base64.b64encode(npy).decode()}, "params": json.loads(params)}},
    ]
    x = ((torch.tensor(VALUES / 65535, dtype=torch.float32) - 0.5) / 0.25).permute(2, 0, 1)[None].requires_grad_()
    logits_K = model.module(x)[0]
    (gradient,) = torch.autograd.grad(logits_K[2], x)
    for status, body in handled(handler, *bodies):
        assert status == 200, body
        logits = {prediction["index"]: prediction["logit"] for prediction in body["predictions"]}
        np.testing.assert_allclose([logits[k] for k in range(3)], logits_K.detach().numpy(), atol=1e-6)
        (explanation,) = body["explanations"]
        sent = explanation["array"]
        assert sent["shape"] == [CHANNELS, *SIZE]
        values = np.frombuffer(base64.b64decode(sent["data"]), sent["dtype"]).reshape(sent["shape"])
        np.testing.assert_allclose(values, gradient[0].numpy(), atol=1e-6)


def test_a_jpeg_is_refused_with_what_the_model_needs_and_its_neighbour_is_answered(handler):
    jpeg = image.encode_jpeg(np.zeros((20, 28, 3), np.uint8))
    (refused, body), (answered, _) = handled(handler, {"body": jpeg}, {"body": image.encode_npy(VALUES)})
    assert (refused, body["type"], answered) == (400, "ImageError", 200)
    assert "the model takes 6 channels, which a JPEG has not; send a TIFF of 6 channels" in body["message"]


def test_maps_of_many_channels_that_no_reply_could_carry_are_refused_before_any_work():
    scene = image.ChannelImage(np.zeros((400, 600, CHANNELS), np.uint8))
    request = Request(scene, parse_params({"methods": ["saliency"], "size": "original", "output": ["array"]}))
    # 400 · 600 float32 are 0.96 MB a channel
    require_sendable(request, (), max_bytes=5_000_000, channels=3)
    with pytest.raises(RequestError, match=r"about 5\.8 MB"):
        require_sendable(request, (), max_bytes=5_000_000, channels=CHANNELS)
