"""Jobs and extraction over a Ray cluster of two workers on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as parquet
import pytest
from extractions import photographs
from PIL import Image

from convlens.errors import JobError
from convlens.evaluation.evaluate import evaluate
from convlens.evaluation.perturbation import CurveProtocol
from convlens.features.embedder import open_embedder
from convlens.features.extract import extract
from convlens.features.image_list import find_images
from convlens.jobs import Entry, run_batch
from convlens.models import load
from convlens.synth.quilting import Quilt

pytest.importorskip("ray", reason="the optional package ray")

from convlens.jobs.ray_cluster import EvaluationActors, extract_on, run_batch_on

pytestmark = pytest.mark.slow


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    path = tmp_path / "source.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    jobs = [Quilt(source=str(path), height=60, width=60, block=16, seed=seed) for seed in range(3)]
    bad = Quilt(source=str(path), block=100)
    return [*(Entry(f"job-{n}", one) for n, one in enumerate(jobs)), Entry("bad", bad)]


def test_a_batch_over_two_workers_ends_as_one_after_another(entries: list[Entry], tmp_path: Path) -> None:
    before = psutil.Process(os.getpid()).children(recursive=True)  # of other tests, with ray on their path perhaps
    results = run_batch_on("local", entries, tmp_path / "spread", device="cpu", workers=2)
    run_batch(entries, tmp_path / "alone", device="cpu")
    assert [one.name for one in results] == [entry.name for entry in entries]
    assert [bool(one.error) for one in results] == [False, False, False, True]
    assert "larger than the source" in results[-1].error
    for entry in entries[:-1]:
        for name in ("texture.png", "losses.jsonl"):
            there, here = (tmp_path / where / entry.name / name for where in ("spread", "alone"))
            assert there.read_bytes() == here.read_bytes()
    indices = [(tmp_path / where / "index.html").read_text() for where in ("spread", "alone")]
    assert indices[0].replace("spread", "alone") == indices[1]
    children = set(psutil.Process(os.getpid()).children(recursive=True)) - set(before)
    assert not [child for child in children if "ray" in " ".join(child.cmdline())]


def test_a_cluster_that_is_not_there_is_told(entries: list[Entry], tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        run_batch_on("127.0.0.1:1", entries, tmp_path / "out")


def test_extraction_over_two_workers_is_one_process_s(tmp_path: Path) -> None:
    """With an image that cannot be read, and after it was cut short; features to the last bits of float32."""
    images = photographs(tmp_path / "pictures", 30, broken=(3, 17))
    files = find_images([images])
    model = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
    embedder = open_embedder(load(model, device="cpu"), None, batch=4)
    alone = extract(files, tmp_path / "alone", embedder, batch=4)

    def spread(out: Path, **options: Any) -> Any:
        return extract_on("local", files, out, model=model, device="cpu", batch=4, workers=2, **options)

    def cut(done: int, _: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread(tmp_path / "cut", on_step=cut, commit_seconds=0.0)
    went_on = spread(tmp_path / "cut")
    assert went_on.resumed >= 16
    manifests = [parquet.read_table(tmp_path / where / "manifest.parquet").to_pydict() for where in ("cut", "alone")]
    probabilities = [manifest.pop("probability") for manifest in manifests]
    assert manifests[0] == manifests[1]
    np.testing.assert_allclose(*probabilities, rtol=1e-4)
    unreadable = [(tmp_path / where / "unreadable.parquet").read_bytes() for where in ("cut", "alone")]
    assert unreadable[0] == unreadable[1]
    assert [one.id for one in went_on.unreadable] == [one.id for one in alone.unreadable]
    there, here = (np.load(tmp_path / where / "features.npy") for where in ("cut", "alone"))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)


def test_an_evaluation_over_two_workers_is_one_process_s(tmp_path: Path) -> None:
    images = photographs(tmp_path / "pictures", 5, broken=(3,))
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef factory():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), "
        "nn.Linear(96, 3))\n"
    )
    name = f"file:{tmp_path / 'net.py'}:factory?size=32&labels={tmp_path / 'names.txt'}"
    options: dict[str, Any] = {"methods": ["saliency", "occlusion"], "protocol": CurveProtocol(4)}
    options["metrics"] = ["insertion", "deletion"]
    model = load(name, device="cpu")
    alone = evaluate(model, images, **options)
    actors = EvaluationActors("local", name, device="cpu", precision="float32", accelerated=False)
    spread = evaluate(model, images, cluster=actors, **options)
    assert [record["id"] for record in spread.records] == [record["id"] for record in alone.records]
    assert [record.get("error") for record in spread.records] == [record.get("error") for record in alone.records]
    for there, here in zip(spread.records, alone.records, strict=True):
        for method, entry in here.get("methods", {}).items():
            assert there["methods"][method]["values"] == pytest.approx(entry["values"], abs=1e-5)
