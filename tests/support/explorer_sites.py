"""Small networks and sites of the explorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import convlens
from convlens.explorer.browser_runtime import RUNTIME
from convlens.explorer.site import write_site
from convlens.models import Classifier
from convlens.utils.cache_dir import CacheDir

# Of the user who runs the tests, who fetched it: the tests themselves keep their cache elsewhere, and fetch nothing.
_RUNTIME = CacheDir().folder / RUNTIME.key

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, activation, pool):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.activation, self.pool, self.head = activation, pool, nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(self.activation(self.first(x)))
        return self.head(self.activation(self.second(x)).mean((2, 3)))

def seeded(activation, pool):
    torch.manual_seed(0)
    return Net(activation, pool)

def relu():
    return seeded(nn.ReLU(), nn.MaxPool2d(2))

def averaging():
    return seeded(nn.ReLU(), nn.AvgPool2d(2))

def gelu():
    return seeded(nn.GELU(), nn.MaxPool2d(2))

def scripted():
    return torch.jit.script(relu().eval())
"""
# Neither square nor ImageNet's: nothing can be right by chance.
PREPARED = "size=24x32&resize=30x40&crop_mode=squash&interpolation=bicubic&mean=.1,.2,.3&std=.4,.5,.6"
LABELS = ("ant", "bee", "<i>cat</i>", "Döner")


def network(folder: Path, factory: str = "relu") -> Classifier:
    """One of the networks of NET, with LABELS, for images as PREPARED says."""
    (folder / "net.py").write_text(NET)
    (folder / "names.txt").write_text("\n".join(LABELS), encoding="utf-8")
    return convlens.load(f"file:{folder / 'net.py'}:{factory}?{PREPARED}&labels={folder / 'names.txt'}", device="cpu")


def browser_runtime() -> Path:
    """onnxruntime-web's files; skips the test where they were not fetched."""
    if not _RUNTIME.is_dir():
        pytest.skip(f"onnxruntime-web is not in {_RUNTIME.parent}; run `{RUNTIME.command}`")
    return _RUNTIME / "content"


def site_without_graphs(classifier: Classifier, folder: Path, *, server: str = "/", **options: Any) -> dict[str, Any]:
    """Writes one in no time, and reads its description."""
    write_site(classifier, folder, runtime=browser_runtime(), methods=[], server=server, **options)
    return described(folder)


def described(folder: Path) -> dict[str, Any]:
    site: dict[str, Any] = json.loads((folder / "site.json").read_text(encoding="utf-8"))
    return site
