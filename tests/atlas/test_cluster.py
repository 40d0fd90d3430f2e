"""Channels over a Ray cluster of workers on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_atlases import QUICK, contents
from small_evaluations import write_images

from convlens.atlas import build_atlas
from convlens.atlas.build import ChannelActors
from convlens.errors import JobError
from convlens.features.image_list import find_images
from convlens.models import load

pytest.importorskip("ray", reason="the optional package ray")

pytestmark = pytest.mark.slow


@pytest.fixture
def name(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef factory():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(6, 3))\n"
    )
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    return f"file:{tmp_path / 'net.py'}:factory?size=32&labels={tmp_path / 'names.txt'}"


def test_an_atlas_over_workers_has_the_records_of_one_process(name: str, tmp_path: Path) -> None:
    files = find_images([write_images(tmp_path / "images", 4)])
    model = load(name, device="cpu", precision="float32")
    alone = build_atlas(model, files, tmp_path / "alone", layers=["1"], options=QUICK)
    actors = ChannelActors("local", name, "cpu", "float32")
    spread = build_atlas(model, files, tmp_path / "spread", layers=["1"], options=QUICK, cluster=actors)
    assert contents(tmp_path / "spread").keys() == contents(tmp_path / "alone").keys()
    for there, here in zip(spread.records, alone.records, strict=True):
        for picture, expected in zip(there.pop("pictures"), here.pop("pictures"), strict=True):
            # Workers compute with other numbers of threads.
            assert picture["activation"] == pytest.approx(expected["activation"], rel=0.05)
        assert there == here


def test_a_cluster_that_is_not_there_is_told(name: str, tmp_path: Path) -> None:
    files = find_images([write_images(tmp_path / "images", 4)])
    model = load(name, device="cpu", precision="float32")
    with pytest.raises(JobError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        build_atlas(
            model,
            files,
            tmp_path / "out",
            layers=["1"],
            options=QUICK,
            cluster=ChannelActors("127.0.0.1:1", name, "cpu", "float32"),
        )
