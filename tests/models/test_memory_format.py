"""Networks that flatten maps by ``view``, as many hand-written ones do: torch then raises for images channels last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import torch
from torch import Tensor, nn

from convlens.acceleration import accelerate
from convlens.explain import ForwardPass, run
from convlens.explain.sweeps.autotune import HalfPrecisionScorer
from convlens.explain.sweeps.windows import Windows
from convlens.instrument import memory_format
from convlens.models import Classifier, load, pack, unpack
from convlens.runtime.torch_runtime import TorchRuntime
from convlens.synth.deepdream import Dream
from convlens.synth.feature_inversion import Invert
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.gram_texture import Texture
from export.exporter import export

SIDE = 24
CHELSEA = str(Path(skimage.__file__).parent / "data" / "chelsea.png")
NET = """
import torch
from torch import nn

class HandWritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, stride=2)
        self.hidden = nn.Linear(8 * 10 * 10, 12)
        self.head = nn.Linear(12, 3)
        torch.manual_seed(0)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x):
        x = self.second(torch.relu(self.norm(self.first(x)))).relu()
        x = x.view(x.size(0), -1)
        return self.head(torch.relu(self.hidden(x)))

def make():
    torch.manual_seed(1)
    return HandWritten()
"""


@pytest.fixture
def hand_written(tmp_path: Path) -> Classifier:
    (tmp_path / "net.py").write_text(NET)
    return load(f"file:{tmp_path}/net.py:make?size={SIDE}", device="cpu")


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def gradient(module: nn.Module, x_NCHW: Tensor, targets: list[int]) -> Tensor:
    """By plain torch, in the order of memory that a plain script has."""
    x_NCHW = x_NCHW.clone().requires_grad_()
    score = module(x_NCHW)[torch.arange(len(targets)), targets].sum()
    return torch.autograd.grad(score, x_NCHW)[0]


def values(classifier: Classifier, method: str, x_NCHW: Tensor, targets: list[int], **options: Any) -> np.ndarray:
    found = run(method, ForwardPass(classifier, x_NCHW), targets, options).values_NCHW
    return np.asarray(found)


def test_the_order_is_found_when_a_network_is_loaded_or_unpacked(hand_written: Classifier, tmp_path: Path) -> None:
    assert memory_format(hand_written.module) == torch.contiguous_format
    assert memory_format(load("torchvision:squeezenet1_1:untrained", device="cpu").module) == torch.channels_last
    pack(hand_written, tmp_path / "packed")
    back = unpack(tmp_path / "packed", device="cpu")
    np.testing.assert_allclose(
        ForwardPass(back, pictures(3)).logits_NK, hand_written.module(pictures(3)).detach(), atol=1e-6
    )


def test_scores_and_gradients_equal_plain_torch_s(hand_written: Classifier) -> None:
    module, x_NCHW, targets = hand_written.module, pictures(3), [0, 2, 1]
    expected = module(x_NCHW).detach()
    for logits_NK in (
        ForwardPass(hand_written, x_NCHW).logits_NK,
        TorchRuntime(module, "head", hand_written.device).logits(x_NCHW),
    ):
        np.testing.assert_allclose(logits_NK, expected, atol=1e-6)
    np.testing.assert_allclose(
        values(hand_written, "saliency", x_NCHW, targets), gradient(module, x_NCHW, targets), atol=1e-6
    )
    steps = values(hand_written, "integrated_gradients", x_NCHW, targets, steps=2)
    nodes = [0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5]  # of Gauss and Legendre
    by_hand = x_NCHW * sum(gradient(module, node * x_NCHW, targets) for node in nodes) / 2
    np.testing.assert_allclose(steps, by_hand, atol=1e-6)


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet", "grad_cam", "smoothgrad"])
def test_methods_equal_those_of_a_network_that_any_order_suits(
    hand_written: Classifier, method: str, tmp_path: Path
) -> None:
    (tmp_path / "reshaping.py").write_text(NET.replace("x.view(", "x.reshape("))
    reshaping = load(f"file:{tmp_path}/reshaping.py:make?size={SIDE}", device="cpu")
    assert memory_format(reshaping.module) == torch.channels_last
    expected = values(reshaping, method, pictures(2), [0, 1])
    np.testing.assert_allclose(values(hand_written, method, pictures(2), [0, 1]), expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-4


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (4, 4)], ids=["9 windows", "36 windows, folded"])
def test_a_sweep_equals_windows_filled_one_by_one(hand_written: Classifier, window: int, stride: int) -> None:
    x_NCHW, module = pictures(1), hand_written.module
    result = run("occlusion", ForwardPass(hand_written, x_NCHW), [1], {"window": window, "stride": stride})
    expected = []
    for top, left in Windows(SIDE, SIDE, window, stride).corners:
        hidden = x_NCHW.clone()
        hidden[:, :, top : top + window, left : left + window] = 0
        expected.append(float(module(x_NCHW)[0, 1] - module(hidden)[0, 1]))
    np.testing.assert_allclose(result.extras["grid_NRQ"].ravel(), expected, atol=1e-5)


def test_half_precision_takes_the_same_order(hand_written: Classifier) -> None:
    scorer = HalfPrecisionScorer(hand_written.module, hand_written.device)
    expected = hand_written.module(pictures(4)).detach()
    np.testing.assert_allclose(scorer.logits(pictures(4)), expected, atol=0.03 * float(expected.abs().max()))


def test_an_accelerated_network_answers_the_same(
    hand_written: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONVLENS_ACCELERATE", raising=False)
    accelerated = accelerate(hand_written)
    assert accelerated.graphs is not None
    expected = hand_written.module(pictures(2)).detach().numpy()
    found = ForwardPass(accelerated, pictures(2)).scores(np.array([0, 2]), "logit")
    np.testing.assert_allclose(found, expected[[0, 1], [0, 2]], atol=1e-5)


def test_its_graphs_equal_it(hand_written: Classifier, tmp_path: Path) -> None:
    for kind in ("scores", "embedding", "saliency"):
        assert export(hand_written, kind, tmp_path / f"{kind}.onnx").path.is_file()  # compared with torch on the way


@pytest.mark.parametrize(
    "job",
    [
        Ascent(classes=(1,), steps=2),
        Ascent(layer="second", channels=(2,), size=32, steps=2),
        Dream(picture=CHELSEA, layers=("second",), octaves=2, steps=2, side=120),
        Invert(picture=CHELSEA, layers=("second",), steps=2),
        Texture(source=CHELSEA, layers=("second",), height=48, width=48, scales=1, steps=2),
    ],
    ids=["class", "channel at another size", "dream at other sizes", "inversion", "texture at another size"],
)
def test_synthesis_runs_no_further_than_the_layer_that_it_needs(hand_written: Classifier, job: Any) -> None:
    # The head takes images of 24 pixels only; what lies before it takes any size.
    work = job.begin(hand_written)
    while work.done < work.total:
        work.step()
    assert work.done > 0
