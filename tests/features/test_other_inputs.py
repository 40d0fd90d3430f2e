"""Features and galleries of rectangles, grey images and images of many channels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from convlens.engine.engine import Engine
from convlens.features.embedder import torch_embedder
from convlens.features.extract import extract
from convlens.features.image_list import find_images, image_files
from convlens.features.output_dir import run_settings
from convlens.gallery import build
from convlens.image import ChannelImage, prepare, read_channels
from convlens.models import Classifier, wrap
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request

COUNT = 7


def classifier(channels: int, **options) -> Classifier:
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    return wrap(nn.Sequential(*layers), mean=[0.5] * channels, std=[0.25] * channels, **options)


def scenes(folder: Path, channels: int, kind: str) -> dict[str, np.ndarray]:
    """Noise as files of that kind, and one file of other channels."""
    folder.mkdir()
    rng, values = np.random.default_rng(channels), {}
    for n in range(COUNT):
        values[f"{n}.{kind}"] = rng.integers(0, 65536, (20 + n, 30, channels), dtype=np.uint16)
        _write(folder / f"{n}.{kind}", values[f"{n}.{kind}"])
    _write(folder / f"other.{kind}", np.zeros((20, 30, channels + 1), np.uint16))
    return values


def _write(path: Path, values_HWC: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, values_HWC)
    else:
        tifffile.imwrite(path, values_HWC, photometric="minisblack", planarconfig="contig")


@pytest.mark.parametrize("kind", ["npy", "tif"])
@pytest.mark.parametrize("channels", [2, 6])
def test_features_are_those_of_plain_torch(channels, kind, tmp_path):
    model = classifier(channels, size=(18, 26), crop_mode="squash", interpolation="bilinear")
    values = scenes(tmp_path / "scenes", channels, kind)
    result = extract(image_files(tmp_path / "scenes"), tmp_path / "out", torch_embedder(model, batch=4), batch=4)
    features_ND = np.load(tmp_path / "out" / "features.npy")
    assert len(features_ND) == COUNT
    (failure,) = result.unreadable
    assert failure.id == f"other.{kind}"
    told = f"shape (20, 30, {channels + 1})" if kind == "npy" else f"a TIFF of {channels + 1} channels"
    assert told in failure.reason
    for row_D, image in zip(features_ND, values.values(), strict=True):
        planes = [Image.fromarray((image[..., n] / 65535).astype(np.float32)) for n in range(channels)]
        resized = np.stack([np.asarray(plane.resize((26, 18), Image.Resampling.BILINEAR)) for plane in planes])
        x_1CHW = torch.tensor((resized - 0.5) / 0.25)[None]
        with torch.no_grad():
            expected_D = model.module[:4](x_1CHW)[0].numpy()
        np.testing.assert_allclose(row_D, expected_D, atol=1e-6)


def test_a_gallery_of_six_channels_finds_each_image_itself(tmp_path):
    model = classifier(6, size=(18, 26), display_channels=(5, 3, 1))
    scenes(tmp_path / "scenes", 6, "npy")
    report = build(tmp_path / "scenes", tmp_path / "gallery", model, thumbnail_side=16)
    assert (report.added, [id for id, _ in report.unreadable]) == (COUNT, ["other.npy"])
    picture = read_channels(tmp_path / "scenes" / "3.npy", 6)
    request = Request(picture, parse_params({"neighbours": 1}))
    (reply,) = Engine(model, gallery=report.gallery).run([request])
    (nearest,) = reply.explanations[0].result.neighbours_NM[0]
    assert nearest.id == "3.npy"
    assert nearest.distance < 1e-3
    assert Image.open(io.BytesIO(nearest.thumbnail)).size == (16, 16)


def test_a_grey_network_reads_colour_and_grey_files_as_pillows_luma(tmp_path):
    model = classifier(1, size=16)
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    colours.save(tmp_path / "colours.png")
    colours.convert("L").save(tmp_path / "grey.png")
    by_colours, by_grey = (
        prepare(read_channels(tmp_path / name, 1), model.spec).x_CHW for name in ("colours.png", "grey.png")
    )
    np.testing.assert_array_equal(by_colours, by_grey)
    np.testing.assert_allclose(by_grey[0], (np.asarray(colours.convert("L")) / 255 - 0.5) / 0.25, atol=1e-6)


def test_arrays_count_as_images_only_where_there_are_no_others(tmp_path):
    np.save(tmp_path / "features.npy", np.zeros((3, 4)))
    assert list(image_files(tmp_path)) == ["features.npy"]
    assert list(find_images([tmp_path / "features.npy"])) == ["features.npy"]
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    assert list(image_files(tmp_path)) == ["cat.png"]


@pytest.mark.parametrize(
    ("options", "new"),
    [
        ({"size": 16}, set()),
        ({"size": (16, 20)}, {"crop_width", "resize_width"}),
        ({"size": 16, "crop_mode": "border"}, {"crop_mode"}),
    ],
)
def test_a_run_records_what_is_new_only_where_it_differs(options, new):
    embedder = torch_embedder(classifier(3, **options), batch=4)
    settings = run_settings({}, embedder, format="npy", batch=4, thumbnail_side=0, shard_rows=None, part=None)
    assert {"crop_mode", "crop_width", "resize_width"} & settings.keys() == new


def test_an_image_in_memory_is_prepared_as_its_file_is(tmp_path):
    values = scenes(tmp_path / "scenes", 4, "tif")["2.tif"]
    spec = classifier(4, size=(18, 26)).spec
    by_file = prepare(read_channels(tmp_path / "scenes" / "2.tif", 4), spec).x_CHW
    in_memory = prepare(ChannelImage((values / np.float32(65535)).astype(np.float32)), spec).x_CHW
    np.testing.assert_allclose(by_file, in_memory, atol=1e-6)
