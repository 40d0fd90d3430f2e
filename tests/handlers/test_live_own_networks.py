"""Networks that are not softmax over square RGB, packed and served by TorchServe: the answers are plain torch's."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import own_networks
import pytest
import torch
from live_server import array, strict
from PIL import Image
from torch import Tensor, nn

from convlens.models import load, pack
from convlens.torchserve import archive, server
from convlens.torchserve.archive_config import ArchiveOptions

pytestmark = pytest.mark.live

SIX = "{0},{0},{0},{0},{0},{0}"


def png(channels: int, size: tuple[int, int]) -> tuple[bytes, np.ndarray]:
    """A PNG of noise, and its pixels (H, W, C)."""
    pixels_HWC = np.random.default_rng(channels).integers(0, 256, (*size, channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels_HWC[:, :, 0] if channels == 1 else pixels_HWC).save(file, "PNG")
    return file.getvalue(), pixels_HWC


def npy(channels: int, size: tuple[int, int]) -> tuple[bytes, np.ndarray]:
    pixels_HWC = np.random.default_rng(channels).integers(0, 256, (*size, channels), dtype=np.uint8)
    file = io.BytesIO()
    np.save(file, pixels_HWC)
    return file.getvalue(), pixels_HWC


@dataclass(frozen=True)
class Served:
    """``picture`` is as large as the network's input, so that nothing is resized; ``options`` follow the name's ?."""

    factory: Callable[[], nn.Module]
    picture: tuple[bytes, np.ndarray]
    options: str
    activation: str
    probabilities: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] = lambda out: out


def _log_odds(out: Tensor) -> Tensor:
    return torch.logit(out.double()).float()


SERVED = {
    "grey": Served(
        own_networks.binary_grey, png(1, (32, 32)), "size=32&resize=32&mean=.5&std=.25", "sigmoid",
        lambda out: torch.cat([1 - out.sigmoid(), out.sigmoid()], 1), lambda out: torch.cat([-out, out], 1),
    ),
    "bands": Served(
        own_networks.six_channels, npy(6, (32, 32)),
        f"size=32&resize=32&mean={SIX.format('.5')}&std={SIX.format('.25')}", "softmax", lambda out: out.softmax(1),
    ),
    "labels": Served(
        own_networks.multi_label, png(3, (32, 32)), "size=32&resize=32&mean=.5&std=.25", "sigmoid", lambda out: out,
        _log_odds,
    ),
    "wide": Served(
        own_networks.rectangle, png(3, (24, 40)), "size=24x40&resize=24x40&crop_mode=squash&mean=.5&std=.25", "softmax",
        lambda out: out.softmax(1),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Any], Any]]:
    folder = tmp_path_factory.mktemp("own")
    archives = {}
    for name, served in SERVED.items():
        source = f"file:{own_networks.__file__}:{served.factory.__name__}?{served.options}"
        pack(load(source, device="cpu"), folder / name)
        options = ArchiveOptions(batch_size=2, max_batch_delay_ms=20)
        archives[name] = archive.build(name=name, model_dir=folder / name, store=folder / "store", options=options)
    with ExitStack() as stack:
        started = stack.enter_context(server.running(archives=archives, run_dir=folder / "run"))
        client = stack.enter_context(httpx.Client(timeout=120, trust_env=False))

        def asked(name: str, params: Any) -> Any:
            form = {"data": ("picture", SERVED[name].picture[0]), "params": (None, json.dumps(params))}
            url = f"{started.inference_url}/predictions/{name}"
            got = client.post(url, headers=started.headers("inference"), files=form)
            assert got.status_code == 200, got.text[:500]
            return strict(got.content)

        yield asked


def as_torch_sees(name: str) -> Tensor:
    pixels_HWC = SERVED[name].picture[1]
    return ((torch.tensor(pixels_HWC).permute(2, 0, 1).float() / 255 - 0.5) / 0.25)[None]


@pytest.mark.parametrize("name", SERVED)
def test_predictions_and_maps_are_those_of_plain_torch(name: str, ask: Callable[[str, Any], Any]) -> None:
    served, x = SERVED[name], as_torch_sees(name).requires_grad_()
    module = served.factory().eval()
    out = module(x)
    logits_NK = served.logits(out)
    target, side = 1, 8
    (gradient,) = torch.autograd.grad(logits_NK[:, target].sum(), x)
    reply = ask(
        name,
        {
            "explain": True,
            "topk": 5,
            "target": target,
            "methods": ["saliency", {"method": "occlusion", "options": {"window": side, "stride": side}}],
            "output": ["array", "overlay"],
        },
    )
    assert reply["activation"] == served.activation
    expected = {k: float(p) for k, p in enumerate(served.probabilities(out)[0].detach())}
    given = {each["index"]: each["probability"] for each in reply["predictions"]}
    assert given == pytest.approx({k: expected[k] for k in given}, abs=1e-6)
    assert len(given) == min(5, len(expected))
    saliency, occlusion = reply["explanations"]
    np.testing.assert_allclose(array(saliency["array"]).squeeze(), gradient[0].numpy().squeeze(), atol=1e-6)
    height, width = x.shape[2:]
    with torch.no_grad():
        clean = served.logits(module(x))[0, target]
        for top in range(0, height, side):
            for left in range(0, width, side):
                hidden = x.detach().clone()
                hidden[:, :, top : top + side, left : left + side] = 0
                drop = clean - served.logits(module(hidden))[0, target]
                cell = array(occlusion["array"]).squeeze()[top : top + side, left : left + side]
                np.testing.assert_allclose(cell, np.full((side, side), float(drop)), atol=2e-6)
