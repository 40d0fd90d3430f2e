"""Networks of rectangles, of grey and of many channels, through the engine's whole path, against plain torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from convlens import image, visualization
from convlens.engine.engine import Engine, EngineOptions
from convlens.errors import ImageError
from convlens.models import Classifier, wrap
from convlens.protocol.requests import ApiRequest, parse_request
from convlens.types import Attribution, Reply

LABELS = ("dark", "bright", "striped")


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(channels)
    layers = nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(LABELS))).eval()


@dataclass(frozen=True)
class Case:
    """A network's input, and an image for it as bytes that a client sends and as values that torch is given."""

    channels: int
    size: tuple[int, int]
    options: dict[str, Any]
    values_HWC: np.ndarray
    data: bytes

    @property
    def module(self) -> nn.Sequential:
        return network(self.channels)

    def classifier(self) -> Classifier:
        mean, std = self.statistics
        return wrap(self.module, size=self.size, mean=mean, std=std, labels=LABELS, **self.options)

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return [0.4 + 0.05 * n for n in range(self.channels)], [0.2 + 0.02 * n for n in range(self.channels)]

    @property
    def x_1CHW(self) -> torch.Tensor:
        """The image as it is sent, of the network's own size, so that nothing is resized."""
        mean, std = (torch.tensor(part)[:, None, None] for part in self.statistics)
        scale = {"uint8": 255, "uint16": 65535}.get(str(self.values_HWC.dtype), 1)
        unit_CHW = torch.tensor(self.values_HWC.astype(np.float32)).permute(2, 0, 1) / scale
        return ((unit_CHW - mean) / std)[None]


def noise(size: tuple[int, int], channels: int, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(channels)
    if dtype == "float32":
        return rng.random((*size, channels), np.float32)
    return rng.integers(0, np.iinfo(dtype).max, (*size, channels), dtype=dtype)


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tiff(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
    return file.getvalue()


def grey_png(values: np.ndarray) -> bytes:
    return image.encode_png(np.repeat(values, 3, axis=2))


def case(channels: int, size: tuple[int, int], encode: Any, dtype: str = "uint8", **options: Any) -> Case:
    values_HWC = noise(size, channels, dtype)
    return Case(channels, size, options, values_HWC, encode(values_HWC))


CASES = {
    "rectangle": case(3, (24, 40), image.encode_png),
    "upright rectangle, squash": case(3, (40, 24), image.encode_png, crop_mode="squash"),
    "grey": case(1, (24, 24), grey_png),
    "grey npy of 16 bits": case(1, (24, 30), npy, "uint16"),
    "two channels": case(2, (24, 24), tiff),
    "four channels, 16 bits": case(4, (24, 32), tiff, "uint16", crop_mode="border"),
    "six channels, floats": case(6, (24, 24), npy, "float32", display_channels=(3, 2, 1)),
    "six channels, 8 bits": case(6, (32, 24), tiff, display_channels=(5,)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def answered(case: Case, **params: Any) -> Reply:
    """The whole way of a request: bytes in, read for the model's channels, a reply out."""
    classifier = case.classifier()
    (reply,) = Engine(classifier, options=EngineOptions()).run(parsed(case.data, case.channels, params).requests)
    assert isinstance(reply, Reply), reply
    return reply


def parsed(data: bytes, channels: int, params: dict[str, Any]) -> ApiRequest:
    return parse_request({"data": data, "params": params}, {}, channels=channels)


def attribution(reply: Reply, name: str) -> Attribution:
    (result,) = (item.result for item in reply.explanations if item.id == name)
    assert isinstance(result, Attribution)
    return result


METHODS = [
    {"method": "saliency"},
    {"method": "guided_backprop"},
    {"method": "grad_cam"},
    {"method": "occlusion", "options": {"window": 8, "stride": 8}},
]


@each_case
def test_every_answer_equals_plain_torch(case):
    reply = answered(case, methods=METHODS, target=1, topk=3)
    module, x = case.module, case.x_1CHW.requires_grad_()
    logits_K = module(x)[0]
    by_label = {prediction.label: prediction.logit for prediction in reply.predictions}
    np.testing.assert_allclose([by_label[label] for label in LABELS], logits_K.detach().numpy(), atol=1e-6)
    (gradient,) = torch.autograd.grad(logits_K[1], x)
    np.testing.assert_allclose(attribution(reply, "saliency").values_NCHW, gradient.numpy(), atol=1e-6)
    np.testing.assert_allclose(attribution(reply, "guided_backprop").values_NCHW, guided(module, x), atol=1e-6)
    np.testing.assert_allclose(attribution(reply, "grad_cam").values_NCHW, grad_cam(module, x), atol=1e-6)
    grid = attribution(reply, "occlusion").extras["grid_NRQ"]
    np.testing.assert_allclose(grid, drops(module, x.detach(), 8, 8), atol=1e-6)
    assert attribution(reply, "occlusion").values_NCHW.shape == (1, 1, *case.size)
    assert not reply.warnings


def guided(module: nn.Sequential, x: torch.Tensor) -> np.ndarray:
    """Layer by layer, back by hand: at each ReLU only what is positive passes, in either direction."""
    outputs = [x]
    for layer in module:
        outputs.append(layer(outputs[-1].detach().requires_grad_()))
    gradient = torch.zeros(1, len(LABELS))
    gradient[0, 1] = 1
    for layer, value in zip(reversed(module), reversed(outputs[:-1]), strict=True):
        given = value.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(given), given, gradient.clamp(min=0) if isinstance(layer, nn.ReLU)
                                          else gradient)  # fmt: skip
    return gradient.numpy()


def grad_cam(module: nn.Sequential, x: torch.Tensor) -> np.ndarray:
    """The linear layer reads the mean of the last map: each channel weighs its weight over the number of places."""
    with torch.no_grad():
        map_CHW = module[:5](x)[0]
        cam_HW = (module[7].weight[1][:, None, None] * map_CHW).sum(0) / map_CHW[0].numel()
        size = tuple(x.shape[2:])
        cam_HW = nn.functional.interpolate(cam_HW.clamp(min=0)[None, None], size, mode="bilinear", align_corners=False)
    return cam_HW.numpy()


def drops(module: nn.Module, x: torch.Tensor, window: int, stride: int) -> np.ndarray:
    height, width = x.shape[2:]
    tops, lefts = ([*range(0, side - window + 1, stride)] for side in (height, width))
    lefts += [width - window] if lefts[-1] != width - window else []  # the last window sits flush with the edge
    with torch.no_grad():
        clean = module(x)[0, 1]
        grid = np.empty((1, len(tops), len(lefts)), np.float32)
        for row, top in enumerate(tops):
            for column, left in enumerate(lefts):
                hidden = x.clone()
                hidden[:, :, top : top + window, left : left + window] = 0
                grid[0, row, column] = clean - module(hidden)[0, 1]
    return grid


@each_case
@pytest.mark.parametrize("size", ["model", "original"])
def test_every_method_is_drawn_over_what_is_shown(case, size):
    reply = answered(case, methods=METHODS, output=["overlay", "heatmap"], size=size)
    for explanation in reply.explanations:
        for png in (explanation.overlay_png, explanation.heatmap_png):
            assert np.asarray(Image.open(io.BytesIO(png))).shape == (*case.size, 3)


@each_case
def test_gradients_of_other_channels_than_colours_are_drawn_as_their_magnitude(case):
    reply = answered(case, methods=["guided_backprop"], output=["heatmap", "array"])
    values_CHW = attribution(reply, "guided_backprop").values_NCHW[0]
    if case.channels == 3:
        expected = visualization.gradient_image(values_CHW)
    else:
        expected = visualization.sequential(np.abs(values_CHW).max(axis=0))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(reply.explanations[0].heatmap_png))), expected)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_an_rgb_jpeg_for_a_model_of_other_channels_is_refused_at_the_door(channels):
    data = image.encode_jpeg(noise((24, 24), 3))
    with pytest.raises(ImageError, match=f"TIFF of {channels} channels, or a .npy file of"):
        parsed(data, channels, {})


def test_an_image_of_other_channels_than_the_engines_model_fails_alone():
    case = CASES["six channels, floats"]
    requests = [*parsed(case.data, 6, {}).requests, *parsed(image.encode_png(noise((24, 24), 3)), 3, {}).requests]
    fits, fails = Engine(case.classifier()).run(requests)
    assert isinstance(fits, Reply)
    assert isinstance(fails, ImageError)
    assert "takes 6 channels" in fails.message


@pytest.mark.parametrize(
    ("crop_mode", "box"),
    [
        ("center", (30, 0, 90, 40)),  # of a 3:2 window, the whole height
        ("squash", (0, 0, 120, 40)),
        ("border", (0, -20, 120, 60)),  # 120 × 40 is 36 × 12 in 36 × 24: 6 rows of border, 20 pixels, on either side
    ],
)
def test_the_reply_says_where_the_view_lies(crop_mode, box):
    classifier = wrap(network(3), size=(24, 36), crop_mode=crop_mode, labels=LABELS)
    picture = Image.fromarray(noise((40, 120), 3))
    params = {"methods": ["saliency"], "output": ["overlay", "array"], "size": "original"}
    (reply,) = Engine(classifier).run(parsed(image.encode_png(np.asarray(picture)), 3, params).requests)
    assert reply.placement.size == (120, 40)
    np.testing.assert_allclose(reply.placement.box, box)
    assert np.asarray(Image.open(io.BytesIO(reply.explanations[0].overlay_png))).shape == (40, 120, 3)


@pytest.mark.parametrize(
    ("crop_mode", "size", "warned"),
    [
        ("center", (36, 24), False),
        ("center", (35, 24), True),
        ("squash", (40, 23), True),
        ("border", (72, 20), False),  # half as large in the view
        ("border", (30, 20), True),
    ],
)
def test_only_an_image_that_was_enlarged_is_warned_of(crop_mode, size, warned):
    classifier = wrap(network(3), size=(24, 36), crop_mode=crop_mode, labels=LABELS)
    png = image.encode_png(noise(size[::-1], 3))
    (reply,) = Engine(classifier).run(parsed(png, 3, {}).requests)
    own = f"the picture is {size[0]}×{size[1]} pixels, smaller than the model's 36×24: it was enlarged"
    assert reply.warnings == ((own,) if warned else ())


def test_what_occlusion_costs_is_counted_in_the_windows_of_a_rectangle():
    engine = Engine(wrap(network(3), size=(24, 48), labels=LABELS), options=EngineOptions(max_cost=17))
    png = image.encode_png(noise((24, 48), 3))
    windows = {"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 8}}]}
    (refused,) = engine.run(parsed(png, 3, windows).requests)
    assert "costs about 18 forward passes and 17 are allowed" in refused.message  # 3 rows of 6 windows
