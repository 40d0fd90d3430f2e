"""A small network, small images and quick options to make an atlas of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nets import classifier
from small_evaluations import SIDE, write_images
from torch import nn

from convlens.atlas import Atlas, ChannelOptions, build_atlas
from convlens.atlas.maximisation import MaximisationOptions
from convlens.features.image_list import find_images
from convlens.models import Classifier

FIRST, LAST = "1", "3"
"""The layers: 6 channels of 16 × 16 units, and 8 channels of 8 × 8, whose means the head reads."""
QUICK = ChannelOptions(k=2, maximisation=MaximisationOptions(pictures=2, steps=3, side=SIDE))


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def small_model() -> Classifier:
    return classifier(small_network(), classes=3, crop=SIDE, embedding_layer="6", gradcam_layer=LAST)


def atlas(images: Path, out: Path, model: Classifier | None = None, **options: Any) -> Atlas:
    """Of both layers, unless said otherwise."""
    given = {"layers": (FIRST, LAST), "options": QUICK, **options}
    return build_atlas(model or small_model(), find_images([images]), out, **given)


def contents(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images_with_a_broken_one(folder: Path, count: int = 5) -> Path:
    """``count`` images of noise, and a file that is none."""
    write_images(folder, count)
    (folder / "broken.png").write_bytes(b"<html> not a picture")
    return folder
