"""Features of a folder of JPEG files, end to end: ConvLens by graph and by torch, against a DataLoader and eager torch.

    python benchmarks/features.py --device cpu --repeats 5

The peer is what one writes without ConvLens: a Dataset with torchvision's transforms of the same model, a DataLoader
with two workers and batches of 32, the model in inference mode with a hook on its last layer, np.save. ConvLens reads
the same files and also hashes them, keeps its journal and writes its tables; models and graphs are loaded beforehand on
all sides. Without --folder, files are cut from scikit-image's photographs: sides of 300 to 500 px, JPEG quality 90.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as ConvLens's own processes run

import numpy as np
import skimage.data
import torch
from PIL import Image
from table import RESULTS, interleaved, ratios, show, write
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from convlens.features.embedder import Embedder, graph_embedder, torch_embedder
from convlens.features.extract import extract
from convlens.features.image_list import image_files
from convlens.features.loader import ImageReader
from convlens.models import DEFAULT, Classifier, load
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import Floats, ModelSpec
from export.exporter import export

PHOTOGRAPHS = ("astronaut", "coffee", "rocket", "chelsea")
PEER, GRAPH = "DataLoader + eager", "convlens, graph"


class Pictures(Dataset[Tensor]):
    """What torchvision's ImageFolder gives, without the labels."""

    def __init__(self, files: list[Path], spec: ModelSpec) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.Resize(spec.resize, transforms.InterpolationMode(spec.interpolation)),
                transforms.CenterCrop(spec.crop),
                transforms.ToTensor(),
                transforms.Normalize(spec.mean, spec.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self.files[number]) as picture:
            return self.transform(picture.convert("RGB"))


def peers(files: list[Path], classifier: Classifier, out: Path, workers: int) -> Floats:
    pictures = Pictures(files, classifier.spec)
    loader = DataLoader(pictures, 32, num_workers=workers, pin_memory=classifier.device.type == "cuda")
    found: list[Tensor] = []
    layer = classifier.module.get_submodule(classifier.spec.embedding_layer)
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].cpu()))
    with torch.inference_mode():
        for x_NCHW in loader:
            classifier.module(x_NCHW.to(classifier.device))
    hook.remove()
    features_ND = torch.cat(found).flatten(1).numpy()
    np.save(out, features_ND)
    return features_ND


def ours(files: dict[str, Path], embedder: Embedder, out: Path, batch: int) -> Floats:
    shutil.rmtree(out, ignore_errors=True)
    extract(files, out, embedder, batch=batch)
    return np.load(out / "features.npy")


def cut(folder: Path, count: int) -> Path:
    """JPEG files of varied crops and sizes."""
    chance = np.random.default_rng(0)
    for number in range(count):
        whole = Image.fromarray(getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])())
        width, height = (int(chance.integers(200, side + 1)) for side in whole.size)
        left, top = int(chance.integers(whole.width - width + 1)), int(chance.integers(whole.height - height + 1))
        size = (int(chance.integers(300, 501)), int(chance.integers(300, 501)))
        part = whole.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        part.save(folder / f"{number:05d}.jpg", quality=90)
    return folder


def reading_share(files: dict[str, Path], embedder: Embedder, call: Callable[[], Any]) -> float:
    """Processor seconds of reading, decoding and preparing all files, over those of the whole extraction."""
    reader = ImageReader(embedder.spec, not embedder.normalises)
    began = time.process_time()
    for item in files.items():
        reader.read_file(item)
    reading, began = time.process_time() - began, time.process_time()
    call()
    return reading / (time.process_time() - began)


def compare(folder: Path, given: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    classifier, files = load(given.model, device=given.device), image_files(folder)
    graph = export(classifier, "embedding", scratch / "embedding.onnx", preprocessing=True, half=given.half).path
    embedders = {
        GRAPH: graph_embedder(classifier, graph),
        "convlens, torch": torch_embedder(classifier, batch=given.batch),
    }
    sides: dict[str, Callable[[], Floats]] = {
        PEER: lambda: peers(list(files.values()), classifier, scratch / "peer.npy", given.loader_workers)
    }
    for name, embedder in embedders.items():
        sides[name] = lambda name=name, embedder=embedder: ours(files, embedder, scratch / name, given.batch)
    expected_ND = sides[PEER]()
    differences = {
        name: float(np.abs(call() - expected_ND).max() / np.abs(expected_ND).max()) for name, call in sides.items()
    }
    shares = {name: reading_share(files, embedder, sides[name]) for name, embedder in embedders.items()}
    seconds = interleaved(sides, repeats=given.repeats, device=given.device)
    return [
        {
            "model": classifier.spec.name,
            "side": name,
            "pictures": len(files),
            "pictures/s": len(files) / statistics.median(seconds[name]),
            "against the DataLoader": ratios(seconds[PEER], seconds[name])[0],
            "quartiles": "{1:.2f}..{2:.2f}".format(*ratios(seconds[PEER], seconds[name])),
            "reading's share": shares.get(name, ""),
            "features off by": differences[name],
        }
        for name in sides
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--folder", type=Path, help="pictures of your own")
    parser.add_argument("--count", type=int, default=256, help="how many to make where no folder is given")
    parser.add_argument("--batch", type=int, default=16, help="ConvLens's; the peer's is 32")
    parser.add_argument("--loader-workers", type=int, default=2, help="processes of the DataLoader")
    parser.add_argument("--half", action="store_true", help="a graph in float16, for GPUs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kept = keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "pictures").mkdir()
        folder = given.folder or cut(Path(scratch) / "pictures", given.count)
        rows = compare(folder, given, Path(scratch))
    show(rows)
    write(
        given.out or RESULTS / f"features-{given.device.partition(':')[0]}.json",
        device=given.device,
        rows=rows,
        input="JPEG files from a folder of the caller's" if given.folder else "JPEG files, sides 300..500 px",
        batch=given.batch,
        loader={"batch": 32, "workers": given.loader_workers},
        half=given.half,
        keep_freed_memory=kept,
        repeats=given.repeats,
    )


if __name__ == "__main__":
    main()
