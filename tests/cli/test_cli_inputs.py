"""The command line with models of rectangles and of other channels than RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens.cli.main import main
from convlens.cli.query import _view
from convlens.image import prepare
from convlens.types import Attribution, Explanation, Meta, ModelSpec, Placement, Reply
from export.__main__ import _sides

NET = """
from torch import nn

def make():
    layers = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    options = "size=20x32&resize=20x32&crop_mode=squash&mean=.5&std=.25&display_channels=4,2,0"
    return f"file:{tmp_path}/net.py:make?{options}"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    for n in range(3):
        values = np.random.default_rng(n).integers(0, 256, (20, 32, 6), dtype=np.uint8)
        np.save(folder / f"{n}.npy", values)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["convlens", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_arrays_are_explained_into_a_report(model, scenes, tmp_path, monkeypatch):
    methods = ("--methods", "saliency,grad_cam", "--no-accelerate", "-o", tmp_path / "out")
    assert run(monkeypatch, "explain", scenes, "--model", model, *methods) == 0
    views = sorted((tmp_path / "out").rglob("view.png"))
    assert len(views) == 3
    np.testing.assert_array_equal(np.asarray(Image.open(views[0])), np.load(scenes / "0.npy")[..., [4, 2, 0]])


def test_patches_of_arrays_are_found(model, scenes, tmp_path, monkeypatch):
    options = ("--layer", "2", "-k", 2, "-o", tmp_path / "out")
    assert run(monkeypatch, "patches", scenes, "--model", model, *options) == 0
    assert len(list((tmp_path / "out" / "channels").glob("*.jpg"))) == 8


def test_an_image_of_other_channels_is_refused_by_name(model, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (32, 20)).save(tmp_path / "cat.jpg")
    assert run(monkeypatch, "explain", tmp_path / "cat.jpg", "--model", model, "-o", tmp_path / "out") == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "cat.jpg" in told and "send a TIFF of 6 channels" in told


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_the_view_of_a_servers_reply_is_what_the_model_saw(crop_mode, tmp_path):
    spec = ModelSpec("m", 40, 44, "bicubic", (128 / 255,) * 3, (0.25,) * 3, ("a",), "fc", "features", "conv", "0" * 64,
                     crop_mode=crop_mode, crop_width=60, resize_width=66)  # fmt: skip
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 30, 3), dtype=np.uint8))
    picture = noise.resize((300, 90), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "wide.png")
    prepared = prepare(picture, spec)
    maps = Attribution(np.zeros((1, 1, 40, 60)), np.zeros(1), np.zeros(1, int), "occlusion", {}, Meta("", "logit", "",
                       "", ""))  # fmt: skip
    reply = Reply("m", "1", "", "", "cpu", (), (Explanation("o", "occlusion", maps, "a", 1.0),), (), {},
                  placement=Placement(picture.size, prepared.box))  # fmt: skip
    view = np.asarray(Image.open(io.BytesIO(_view(tmp_path / "wide.png", reply)))).astype(int)
    # By a box of the original instead of the resized image: the same but for rounding and, at a border, its edge.
    difference = np.abs(view - prepared.view_HWC)
    assert np.quantile(difference, 0.9) <= 4


@pytest.mark.parametrize(("text", "size"), [("224", 224), ("128x256", (128, 256))])
def test_the_size_of_a_graph_is_a_side_or_height_and_width(text, size):
    assert _sides(text) == size
