"""What an extraction writes: features, in order, each with what belongs to it; and what it leaves out."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from extractions import contents, extraction, mixed, photographs
from nets import classifier
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torchvision import transforms

from convlens.errors import RequestError
from convlens.features.embedder import torch_embedder
from convlens.features.row_files import row_layout
from convlens.models import wrap
from convlens.types import Activation

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class MeanColour(nn.Module):
    """The embedding is the mean of (colour / 255 − 0.5) / 0.25; the class 0 or 1 by whether red beats blue."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        self.first.weight.data = torch.eye(3)[:, :, None, None]
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).mean((2, 3)))


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    folder = tmp_path / "colours"
    for name, colour in {"z.png": RED, "m/b.bmp": BLUE, "m/a.png": GREEN, ".hidden/x.png": RED}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (13, 9), colour).save(folder / name)
    return folder


def rows(out: Path) -> list[dict]:
    return pq.read_table(out / "manifest.parquet").to_pylist()


def unreadable(out: Path) -> list[dict]:
    return pq.read_table(out / "unreadable.parquet").to_pylist()


def test_features_follow_the_paths_and_can_be_worked_out_by_hand(tmp_path: Path, colours: Path) -> None:
    net = torch_embedder(classifier(MeanColour(), classes=2), batch=2)
    extraction(colours, tmp_path / "out", net, batch=2)
    assert [row["id"] for row in rows(tmp_path / "out")] == ["m/a.png", "m/b.bmp", "z.png"]
    # (1 − 0.5) / 0.25 and (0 − 0.5) / 0.25; the means over pixels are taken in float32
    expected = [[-2, 2, -2], [-2, -2, 2], [2, -2, -2]]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "features.npy"), expected, atol=1e-6)


def test_each_row_says_what_the_file_was_and_what_the_model_took_it_for(tmp_path: Path, colours: Path) -> None:
    extraction(colours, tmp_path / "out", torch_embedder(classifier(MeanColour(), classes=2), batch=2), batch=2)
    found = rows(tmp_path / "out")[2]
    data = (colours / "z.png").read_bytes()
    sure = 1 / (1 + np.exp(-4))  # logits 2 and −2
    assert found.pop("probability") == pytest.approx(sure, abs=1e-6)
    assert found == {
        "row": 2,
        "file": "features.npy",
        "file_row": 2,
        "position": 2,
        "id": "z.png",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": 13,
        "height": 9,
        "top1": 0,
        "label": "class 0",
    }


def test_features_are_those_of_plain_torch_image_by_image(tmp_path: Path) -> None:
    folder, net = photographs(tmp_path / "pictures", 11), mixed()
    extraction(folder, tmp_path / "out")
    as_torchvision = transforms.Compose(
        [
            transforms.Resize(12, transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(12),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )
    seen: list[np.ndarray] = []
    net.module.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()[0]))
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as image, torch.no_grad():
            net.module(as_torchvision(image)[None])
    # Convolutions may add in another order in a batch, and with channels last.
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "features.npy"), np.stack(seen), rtol=0, atol=1e-5 * np.abs(seen).max()
    )


def test_npy_can_be_mapped_and_shards_hold_the_same_rows(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 11)
    extraction(folder, tmp_path / "npy")
    extraction(folder, tmp_path / "shards", format="safetensors", shard_rows=3)
    mapped = np.load(tmp_path / "npy" / "features.npy", mmap_mode="r")
    parts, first_rows = [], []
    for path in sorted((tmp_path / "shards").glob("*.safetensors")):
        with safe_open(path, "numpy") as shard:
            parts.append(shard.get_tensor("features"))
            first_rows.append(shard.metadata()["first_row"])
    assert isinstance(mapped, np.memmap)
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert first_rows == ["0", "3", "6", "9"]
    np.testing.assert_array_equal(np.concatenate(parts), mapped)
    table = rows(tmp_path / "shards")
    assert [(row["file"], row["file_row"]) for row in table[2:5]] == [
        ("features-00000.safetensors", 2),
        ("features-00001.safetensors", 0),
        ("features-00001.safetensors", 1),
    ]


@pytest.mark.parametrize("count", [0, 1, 16384, 10**12])
def test_headers_are_read_by_numpy_for_any_number_of_rows(tmp_path: Path, count: int) -> None:
    header = row_layout("npy").header(count, 2048, first=0)
    (tmp_path / "header").write_bytes(header)
    with (tmp_path / "header").open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((count, 2048), False, np.dtype("<f4"))
        assert file.tell() == len(header) == 128


def test_what_cannot_be_read_is_listed_with_the_reason_and_left_out(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 9, broken=(0, 4))
    (folder / "b" / "007.jpg").write_bytes((folder / "b" / "007.jpg").read_bytes()[:200])
    done = extraction(folder, tmp_path / "out")
    assert done.rows == 6
    found = unreadable(tmp_path / "out")
    assert [(each["position"], each["id"]) for each in found] == [(0, "a/000.jpg"), (4, "b/004.jpg"), (5, "b/007.jpg")]
    assert "an HTML page is not an image" in found[0]["reason"]
    assert "damaged" in found[2]["reason"]
    assert [row["position"] for row in rows(tmp_path / "out")] == [1, 2, 3, 6, 7, 8]
    assert [failure.id for failure in done.unreadable] == [each["id"] for each in found]


def test_images_that_come_after_an_unreadable_one_keep_their_own_features(tmp_path: Path) -> None:
    whole = photographs(tmp_path / "whole", 9)
    some = photographs(tmp_path / "some", 9, broken=(0, 4))
    extraction(whole, tmp_path / "a")
    extraction(some, tmp_path / "b")
    expected = {row["id"]: n for n, row in enumerate(rows(tmp_path / "a"))}
    all_ND, some_ND = (np.load(tmp_path / name / "features.npy") for name in "ab")
    for n, row in enumerate(rows(tmp_path / "b")):
        # other images in the batch, so float32 may add in another order
        np.testing.assert_allclose(some_ND[n], all_ND[expected[row["id"]]], atol=1e-5 * np.abs(all_ND).max())


class Inverse(MeanColour):
    """The embedding is 1 / (2 + the mean colour): infinite in the channels that an image lacks."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(1 / (2 + self.first(x_NCHW).mean((2, 3))))


def test_features_that_are_not_finite_are_left_out_too(tmp_path: Path, colours: Path) -> None:
    Image.new("RGB", (9, 9), "white").save(colours / "n.png")
    done = extraction(colours, tmp_path / "out", torch_embedder(classifier(Inverse(), classes=2), batch=4))
    assert [failure.id for failure in done.unreadable] == ["m/a.png", "m/b.bmp", "z.png"]
    assert "its embedding is NaN or infinite" in done.unreadable[0].reason
    np.testing.assert_allclose(np.load(tmp_path / "out" / "features.npy"), [[0.25, 0.25, 0.25]], atol=1e-6)


def test_a_folder_without_one_readable_image_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 2, broken=(0, 1))
    with pytest.raises(RequestError, match=r"none of 2 images could be used; a/000\.jpg: an HTML page"):
        extraction(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_what_made_the_features_and_what_the_files_hold(tmp_path: Path) -> None:
    extraction(photographs(tmp_path / "pictures", 5, broken=(3,)), tmp_path / "out")
    files = contents(tmp_path / "out")
    found = json.loads(files.pop("manifest.json"))
    said = {name: found[name] for name in ("model", "embedding_layer", "runtime", "device", "batch", "pictures")}
    assert said == {
        "model": "test:net",
        "embedding_layer": "head",
        "runtime": "torch",
        "device": "cpu",
        "batch": 4,
        "pictures": 5,
    }
    assert (found["rows"], found["unreadable"], found["dimensions"], found["weights_sha256"]) == (4, 1, 16, "0" * 64)
    assert (found["crop"], found["mean"], found["std"]) == (12, [0.5] * 3, [0.25] * 3)
    assert {each["name"]: (each["bytes"], each["sha256"]) for each in found["files"]} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }


def test_the_number_of_readers_changes_nothing(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 23, broken=(5,))
    for workers in (1, 5):
        extraction(folder, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "5")


def test_progress_counts_every_image_from_where_it_begins(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    folder = photographs(tmp_path / "pictures", 10, broken=(0,))
    extraction(folder, tmp_path / "out", on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(0, 10), (5, 10), (9, 10), (10, 10)]  # the broken one takes no place in its batch


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"workers": 0}, {"format": "hdf5"}])
def test_options_that_cannot_work_are_refused_before_anything_is_made(tmp_path: Path, wrong: dict) -> None:
    folder = photographs(tmp_path / "pictures", 1)
    with pytest.raises(RequestError, match=r"1 or more|there are: npy, safetensors"):
        extraction(folder, tmp_path / "out", torch_embedder(mixed(), batch=1), **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_the_probability_is_by_the_models_activation(tmp_path: Path, colours: Path, activation: Activation) -> None:
    model = classifier(MeanColour(), classes=2)
    model = replace(model, spec=replace(model.spec, activation=activation))
    extraction(colours, tmp_path / "out", torch_embedder(model, batch=2))
    red = {row["id"]: row for row in rows(tmp_path / "out")}["z.png"]
    logit = (1 - 0.5) / 0.25
    expected = {"sigmoid": 1 / (1 + math.exp(-logit)), "none": logit}[activation]
    assert (red["top1"], red["probability"]) == (0, pytest.approx(expected, abs=1e-6))


def test_a_network_without_classes_gives_features_and_no_label(tmp_path: Path, colours: Path) -> None:
    module = nn.Sequential(MeanColour().first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity())
    model = wrap(module, size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    extraction(colours, tmp_path / "out", torch_embedder(model, batch=2))
    assert {(row["top1"], row["label"], row["probability"]) for row in rows(tmp_path / "out")} == {(-1, "", 0.0)}
