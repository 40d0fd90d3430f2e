"""Deconvnet is no default where its map does not depend on the image."""

from __future__ import annotations

import json
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from engine_door import engine_door
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from convlens import explain, load
from convlens.cli.main import build
from convlens.cli.models import without_lattice
from convlens.engine.engine import Engine
from convlens.explain import ForwardPass
from convlens.instrument import remembers_places
from convlens.torchserve.archive import read_manifest

METHODS = ["saliency", "deconvnet", "occlusion"]
POOLS = [
    nn.MaxPool2d(2),
    nn.AdaptiveMaxPool2d(2),
    nets.Call(lambda x: nn.functional.max_pool2d(x, 2)),
    nets.Call(lambda x: x.amax((2, 3), keepdim=True)),
]
NO_POOLS = [nn.Identity(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nets.Call(lambda x: x.softmax(1))]


def network(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nets.Sequential(nn.Sequential(nn.ReLU(), middle)).eval()


def deconvnet_maps(module: nn.Module) -> np.ndarray:
    """Of two unlike images, for one class."""
    x_NCHW = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32))
    result = explain.run("deconvnet", ForwardPass(nets.classifier(module, classes=3), x_NCHW), [1, 1])
    return np.asarray(result.values_NCHW)


@pytest.mark.parametrize("pool", POOLS)
def test_with_a_maximum_the_maps_differ_and_the_method_stays(
    pool: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    module = network(pool)
    one, other = deconvnet_maps(module)
    assert not np.allclose(one, other)
    assert without_lattice(METHODS, nets.classifier(module, classes=3), asked=["all"]) == METHODS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("middle", NO_POOLS[:3])
def test_without_one_the_maps_are_the_same_and_the_method_is_left_out(middle: nn.Module) -> None:
    module = network(middle)
    one, other = deconvnet_maps(module)
    np.testing.assert_allclose(one, other, atol=1e-6)  # float32
    assert without_lattice(METHODS, nets.classifier(module, classes=3), asked=["all"]) == ["saliency", "occlusion"]


@pytest.mark.parametrize("middle", NO_POOLS)
def test_a_mean_or_a_softmax_is_no_maximum(middle: nn.Module) -> None:
    x_NCHW: Tensor = torch.rand(1, 3, 8, 8, requires_grad=True)
    assert not remembers_places(network(middle)(x_NCHW))


def test_a_network_that_deconvnet_refuses_is_left_to_its_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = nets.classifier(network(nn.SiLU()), classes=3)
    assert without_lattice(METHODS, classifier, asked=["all"]) == METHODS
    assert capsys.readouterr().err == ""


def test_it_is_said_once_why_and_how_to_have_it_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = load(device="cpu")
    assert without_lattice(METHODS, classifier, asked=["all"]) == ["saliency", "occlusion"]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("deconvnet is left out: packaged:efficientnet_lite0 has no max pooling") == 1
    assert "name it in --methods to have it all the same" in said


def test_asked_for_by_name_it_stays(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = nets.classifier(network(nn.Identity()), classes=3)
    assert without_lattice(METHODS, classifier, asked=["all", "deconvnet"]) == METHODS
    assert capsys.readouterr().err == ""


# ---- every command whose --methods take `all`

LATTICE = """
import torch
from torch import nn


def factory():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(LATTICE)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    return f"file:{tmp_path}/net.py:factory?size=16&labels={tmp_path}/names.txt"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def convlens(*arguments: object) -> tuple[int, str]:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    return result.exit_code, " ".join(f"{result.output} {result.exception or ''}".split())


@pytest.mark.parametrize(("named", "has_it"), [((), False), (("--methods", "deconvnet"), True)], ids=["all", "named"])
def test_an_archive_of_all_methods_leaves_it_out(
    model: str, tmp_path: Path, named: tuple[str, ...], has_it: bool
) -> None:
    options = ("--store", tmp_path, "--graphs", "none", "--name", "net")
    code, said = convlens("archive", "--model", model, "--methods", "all", *named, *options)
    assert code == 0, said
    assert ("deconvnet is left out" in said) is not has_it
    methods = read_manifest(tmp_path / "net.mar").config["convlens"]["methods"]
    assert ("deconvnet" in methods, "saliency" in methods) == (has_it, True)


@pytest.mark.parametrize(("named", "has_it"), [((), False), (("--methods", "deconvnet"), True)], ids=["all", "named"])
def test_an_evaluation_of_all_methods_leaves_it_out(
    model: str, picture: Path, tmp_path: Path, named: tuple[str, ...], has_it: bool
) -> None:
    few = ("--set", "rise.masks=8", "--set", "smoothgrad.samples=2", "--set", "gradient_shap.samples=2")
    options = ("--metrics", "sparseness", "--baselines", "none", *few, "-o", tmp_path / "out", "--no-accelerate")
    code, said = convlens("evaluate", picture, "--model", model, "--methods", "all", *named, *options)
    assert code == 0, said
    methods = json.loads((tmp_path / "out" / "evaluation.json").read_text())["settings"]["methods"]
    assert ("deconvnet" in methods, "saliency" in methods) == (has_it, True)
    assert ("deconvnet is left out" in said) is not has_it


@pytest.mark.parametrize(("named", "has_it"), [((), False), (("--methods", "deconvnet"), True)], ids=["all", "named"])
def test_the_answers_of_a_server_to_all_methods_leave_it_out(
    model: str, picture: Path, tmp_path: Path, named: tuple[str, ...], has_it: bool
) -> None:
    few = ("--set", "rise.masks=8", "--set", "smoothgrad.samples=2", "--set", "gradient_shap.samples=2")
    with engine_door(Engine(load(model, device="cpu"))) as url:
        code, said = convlens("query", picture, "--url", url, "--methods", "all", *named, *few, "-o", tmp_path / "out")
    assert code == 0, said
    written = {path.stem for path in (tmp_path / "out" / "picture").glob("*.npz")}
    assert ("deconvnet" in written, "saliency" in written) == (has_it, True)
    assert ("deconvnet is left out" in said) is not has_it


def test_the_demo_of_all_methods_leaves_it_out(model: str, picture: Path, tmp_path: Path) -> None:
    few = ("--methods", "all", "--no-explorer")
    with engine_door(Engine(load(model, device="cpu"))) as url:
        code, said = convlens("demo", picture, "--model", model, "--url", url, *few, "-o", tmp_path / "out")
    assert code == 0, said
    assert "deconvnet is left out" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Saliency" in page and "Deconvnet" not in page


@pytest.mark.parametrize(("middle", "warned"), [(nn.MaxPool2d(2), False), (nn.AvgPool2d(2), True)], ids=["max", "mean"])
def test_a_map_that_is_a_lattice_says_so(middle: nn.Module, warned: bool) -> None:
    x_NCHW = torch.zeros(1, 3, 8, 8)
    result = explain.run("deconvnet", ForwardPass(nets.classifier(network(middle), classes=3), x_NCHW), [1])
    assert any("no max pooling" in warning for warning in result.meta.warnings) is warned
