"""The weights do what they are known for, on real photographs, prepared here by plain PIL."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convlens.models import DEFAULT, Classifier, load
from convlens.types import ModelSpec

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def prepared(path: Path, spec: ModelSpec) -> torch.Tensor:
    picture = Image.open(path).convert("RGB")
    scale = spec.resize / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), FILTERS[spec.interpolation])
    left, top = (picture.width - spec.crop) // 2, (picture.height - spec.crop) // 2
    pixels_HWC = np.asarray(picture.crop((left, top, left + spec.crop, top + spec.crop)), dtype=np.float32) / 255
    return torch.from_numpy((pixels_HWC - np.float32(spec.mean)) / np.float32(spec.std)).permute(2, 0, 1)[None]


def top5(classifier: Classifier, path: Path) -> list[int]:
    with torch.no_grad():
        return classifier.module(prepared(path, classifier.spec))[0].topk(5).indices.tolist()


def skimage_data() -> Path:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image, whose photographs these are, is not installed")
    return Path(spec.origin).parent / "data"


@pytest.mark.parametrize(
    ("picture", "wanted"), [("chelsea.png", {"tiger cat", "Egyptian cat", "tabby"}), ("coffee.png", {"espresso"})]
)
def test_the_default_knows_a_cat_and_a_cup(picture: str, wanted: set[str]) -> None:
    classifier = load(DEFAULT, device="cpu")
    assert classifier.spec.labels[top5(classifier, skimage_data() / picture)[0]] in wanted


def test_squeezenet_from_a_file_is_as_good_as_it_is_known_to_be(test_data: Path) -> None:
    weights = test_data / "weights" / "squeezenet1_0-imagenet.safetensors"
    classifier = load(f"torchvision:squeezenet1_0?weights={weights}&size=227&resize=256", device="cpu")
    folder = test_data / "data" / "imagenet"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(islice(csv.DictReader(file), 40))
    right = [int(row["class_index"]) in top5(classifier, folder / row["file"]) for row in rows]
    # Known: 83.8 % of 1,000 pictures. 75 % of 40 is 1.5 standard errors below.
    assert sum(right) / len(right) >= 0.75
