"""A small network and small images to evaluate it on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nets import classifier
from PIL import Image
from torch import nn

from convlens.cli.main import main
from convlens.evaluation.perturbation import CurveProtocol
from convlens.models import Classifier

SIDE = 16
METHODS = ("saliency", "grad_cam", "guided_backprop")
QUICK: dict[str, Any] = {"metrics": ("insertion", "deletion", "sparseness"), "protocol": CurveProtocol(4)}


def small_model(activation: type[nn.Module] = nn.ReLU) -> Classifier:
    """Three classes of 16 × 16 pixels."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), activation(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 3)
    )
    return classifier(network, classes=3, crop=SIDE, embedding_layer="4", gradcam_layer="1")


def write_images(folder: Path, count: int, height: int = 20, width: int = 24) -> Path:
    """PNG files of noise, 00.png and so on; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for n in range(count):
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{n:02}.png")
    return folder


def run_command(arguments: list[str]) -> None:
    """``convlens`` with these arguments, in one thread."""
    torch.set_num_threads(1)
    sys.argv = ["convlens", *arguments]
    os.environ["CONVLENS_ACCELERATE"] = "0"
    main()
