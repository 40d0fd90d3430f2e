"""``convlens.accelerate``: the network's own answers, from a graph that is exported once and checked each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
from typer.testing import CliRunner, Result

import convlens
from convlens.acceleration import cached_graphs
from convlens.cli.main import build
from convlens.engine.engine import Engine
from convlens.errors import ConvLensError, UnsupportedModelError
from convlens.explain import torch_sweeps
from convlens.features.embedder import open_embedder, torch_embedder
from convlens.features.extract import extract
from convlens.features.image_list import image_files
from convlens.gallery import Gallery
from convlens.models import Classifier
from convlens.types import Attribution
from convlens.utils.cache_dir import CacheDir
from convlens.utils.files import sha256_of_file

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
PROVIDER = "onnxruntime:CPUExecutionProvider"
WINDOWS = {"window": 8, "stride": 4}
EXPORT = ["embedding: tracing", "embedding: comparing with torch at batch 1, 3, 8", "embedding: written"]

# Two convolutions and a head; its weights are the same however its forward pass is edited.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu().mean((2, 3))
        return self.head(x)

def make():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheDir:
    """A cache of this test's own."""
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    return CacheDir()


@pytest.fixture
def model(tmp_path: Path) -> str:
    return named(tmp_path / "net.py", NET)


def named(path: Path, text: str) -> str:
    path.write_text(text)
    return f"file:{path}:make?size=32"


def load(model: str) -> Classifier:
    return convlens.load(model, device="cpu")


def accelerated(classifier: Classifier) -> tuple[Classifier, list[str]]:
    """The classifier with its graph, and the stages of the export."""
    stages: list[str] = []
    return convlens.accelerate(classifier, on_step=lambda step: stages.append(step.stage)), stages


def occlusion(classifier: Classifier) -> Attribution:
    result = convlens.run("occlusion", convlens.ForwardPass(classifier, pictures(1)), [2], WINDOWS)
    assert isinstance(result, Attribution)
    return result


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(count, 3, 32, 32)).astype(np.float32)


def assert_same_map(actual: Attribution, expected: Attribution) -> None:
    # float32 in another order, of scores that are a thousand times the map
    np.testing.assert_allclose(actual.values_NCHW, expected.values_NCHW, atol=1e-6)
    assert np.abs(expected.values_NCHW).max() > 1e-4


# ---- in Python


def test_sweeps_run_on_a_graph_with_the_network_s_own_scores(model: str) -> None:
    classifier = load(model)
    fast, stages = accelerated(classifier)
    assert stages == EXPORT
    by_graph, by_torch = occlusion(fast), occlusion(classifier)
    assert (by_graph.meta.runtime, by_torch.meta.runtime) == (PROVIDER, "torch")
    assert_same_map(by_graph, by_torch)
    assert classifier.graphs is None


def test_a_sweep_alone_needs_no_forward_pass_by_torch(model: str) -> None:
    fast, _ = accelerated(load(model))
    forward = convlens.ForwardPass(fast, pictures(2))
    result = convlens.run("occlusion", forward, [2, 4], WINDOWS)
    assert forward.counts["forwards"] == 0
    np.testing.assert_allclose(result.score_N, forward.logits_NK[[0, 1], [2, 4]], rtol=1e-5)
    assert forward.counts["forwards"] == 1


def test_features_come_from_the_same_graph(model: str) -> None:
    classifier = load(model)
    fast, _ = accelerated(classifier)
    by_graph, by_torch = open_embedder(fast, None, batch=4), torch_embedder(classifier, batch=4)
    assert (by_graph.runtime, by_graph.spec) == (PROVIDER, classifier.spec)
    for actual, expected in zip(by_graph.embed(pictures(5)), by_torch.embed(pictures(5)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    (graph,) = CacheDir().folder.rglob("embedding.onnx")
    assert by_graph.graph_sha256 == sha256_of_file(graph)


def test_the_second_time_nothing_is_exported_also_in_another_process(model: str) -> None:
    accelerated(load(model))
    assert accelerated(load(model))[1] == []
    code = f"import convlens; convlens.accelerate(convlens.load({model!r}, device='cpu'), on_step=print)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_network_with_the_same_weights_and_other_code_is_exported_again(tmp_path: Path, model: str) -> None:
    first = load(model)
    accelerated(first)
    edited = load(named(tmp_path / "net.py", NET.replace("self.head(x)", "self.head(x) * 1.01")))
    assert (edited.spec, edited.source) == (first.spec, first.source)  # so that only the check can tell them apart
    fast, stages = accelerated(edited)
    assert stages == EXPORT
    assert_same_map(occlusion(fast), occlusion(edited))
    assert accelerated(edited)[1] == []


def test_a_damaged_graph_is_exported_again(model: str, cache: CacheDir) -> None:
    accelerated(load(model))
    (graph,) = cache.folder.rglob("embedding.onnx")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    fast, stages = accelerated(load(model))
    assert stages == EXPORT
    assert_same_map(occlusion(fast), occlusion(load(model)))


def test_a_graph_that_left_the_cache_still_runs_where_it_is_open(model: str, cache: CacheDir) -> None:
    fast, _ = accelerated(load(model))
    (graph,) = cache.folder.rglob("embedding.onnx")
    expected = sha256_of_file(graph)
    assert len(cache.clear()) == 1
    assert_same_map(occlusion(fast), occlusion(load(model)))
    assert open_embedder(fast, None, batch=4).graph_sha256 == expected


def test_what_one_call_timed_serves_the_next(model: str) -> None:
    fast, _ = accelerated(load(model))
    assert torch_sweeps(fast) is torch_sweeps(fast) is Engine(fast).sweeps
    for _ in range(2):  # by each backend in float32
        occlusion(fast)
    sweeps = torch_sweeps(fast)
    in_full = {backend for backend in sweeps.backends if backend.precision == "float32"}
    assert {backend for backend, _ in sweeps._seconds} == in_full


def test_a_network_that_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path, cache: CacheDir) -> None:
    model = named(tmp_path / "net.py", NET.replace("self.head(x)", "self.head(x if x.sum() > 0 else -x)"))
    with pytest.raises(UnsupportedModelError, match="torch cannot export this network"):
        accelerated(load(model))
    assert cache.entries() == []


def test_graphs_of_an_archive_are_exported_once_for_each_window(model: str) -> None:
    first = cached_graphs(load(model), kinds=("scores", "occlusion"), **WINDOWS)
    assert {path.name for path in first.iterdir()} == {"model.json", "occlusion.onnx", "scores.onnx"}
    stages: list[object] = []
    assert cached_graphs(load(model), kinds=("scores", "occlusion"), **WINDOWS, on_step=stages.append) == first
    assert stages == []
    assert cached_graphs(load(model), kinds=("occlusion",), window=8, stride=8) != first


# ---- on the command line


def command(*arguments: object, accelerate: str = "1") -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given, env={"CONVLENS_ACCELERATE": accelerate, "COLUMNS": "300"})
    if isinstance(result.exception, ConvLensError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def explained(model: str, out: Path, *options: object, accelerate: str = "1") -> tuple[str, str]:
    """The runtime of the sweep, and what the command said."""
    settings = ("--methods", "occlusion", "--set", "occlusion.window=8", "--set", "occlusion.stride=8")
    said = command(
        "explain", PHOTOGRAPHS / "coffee.png", "--model", model, *settings, *options, "-o", out, accelerate=accelerate
    ).output
    reply = json.loads((out / "coffee" / "reply.json").read_text())
    return reply["explanations"][0]["meta"]["runtime"], said


def test_explain_exports_once_and_says_so(tmp_path: Path, model: str) -> None:
    runtime, said = explained(model, tmp_path / "out")
    assert runtime == PROVIDER
    assert f"exporting file:net.py:make once for this machine; the graph is kept in {tmp_path}/cache" in said
    runtime, said = explained(model, tmp_path / "out")
    assert runtime == PROVIDER
    assert "exporting" not in said


def test_explain_exports_nothing_where_it_is_told_not_to_or_has_graphs(
    tmp_path: Path, model: str, cache: CacheDir
) -> None:
    assert explained(model, tmp_path / "out", "--no-accelerate")[0] == "torch"
    assert explained(model, tmp_path / "out", accelerate="0")[0] == "torch"
    command("export", "scores", "--model", model, "-o", tmp_path / "scores.onnx")
    assert explained(model, tmp_path / "out", "--graphs", tmp_path / "scores.onnx")[0] == PROVIDER
    command("explain", PHOTOGRAPHS / "coffee.png", "--model", model, "--methods", "saliency", "-o", tmp_path / "out")
    assert cache.entries() == []


def test_commands_go_on_by_torch_where_nothing_can_be_exported_or_kept(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chancy = named(tmp_path / "chancy.py", NET.replace("self.head(x)", "self.head(x if x.sum() > 0 else -x)"))
    runtime, said = explained(chancy, tmp_path / "out")
    assert runtime == "torch"
    assert "torch runs file:chancy.py:make, not its graph: torch cannot export this network" in said
    monkeypatch.setenv("CONVLENS_CACHE", "/proc/cache")
    runtime, said = explained(model, tmp_path / "out")
    assert runtime == "torch"
    assert "the cache folder /proc/cache cannot be used" in said


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("coffee.png", "chelsea.png", "astronaut.png"):
        (folder / name).write_bytes((PHOTOGRAPHS / name).read_bytes())
    return folder


class _StopError(Exception):
    pass


def interrupt(classifier: Classifier, images: Path, out: Path) -> None:
    """An extraction that ends after its first image."""

    def stop(done: int, _: int) -> None:
        if done:
            raise _StopError

    with pytest.raises(_StopError):
        extract(
            image_files(images), out, open_embedder(classifier, None, batch=1), batch=1, commit_seconds=0, on_step=stop
        )


@pytest.mark.parametrize(("begun_by", "runtime"), [("torch", "torch"), ("graph", PROVIDER), ("nobody", PROVIDER)])
def test_features_go_on_by_what_began_them(
    tmp_path: Path, model: str, images: Path, begun_by: str, runtime: str
) -> None:
    out = tmp_path / "features"
    if begun_by != "nobody":
        interrupt(load(model) if begun_by == "torch" else accelerated(load(model))[0], images, out)
    said = command("features", images, "--model", model, "--batch", 1, "-o", out).output
    assert json.loads((out / "manifest.json").read_text())["runtime"] == runtime
    assert ("images were done by an earlier run" in said) == (begun_by != "nobody")


def test_a_gallery_is_built_by_the_graph_and_found_by_the_network(tmp_path: Path, model: str, images: Path) -> None:
    assert "exporting" in command("gallery", "build", images, "--model", model, "-o", tmp_path / "gallery").output
    more = tmp_path / "more"
    more.mkdir()
    (more / "rocket.jpg").write_bytes((PHOTOGRAPHS / "rocket.jpg").read_bytes())
    assert "exporting" not in command("gallery", "add", tmp_path / "gallery", more, "--model", model).output
    gallery = Gallery.open(tmp_path / "gallery")
    classifier = load(model)
    x_CHW = convlens.image.prepare(convlens.image.read(images / "coffee.png"), classifier.spec).x_CHW
    (nearest,) = gallery.query(convlens.ForwardPass(classifier, x_CHW[None]).embedding_ND, k=1)[0]
    assert nearest.id == "coffee.png"
    assert nearest.distance < 1e-3
    assert len(gallery) == 4


def test_the_cache_command_lists_and_clears(model: str, cache: CacheDir) -> None:
    assert f"0 entries, 0.0 MB, of at most 4000 MB in {cache.folder}" in command("cache", "list").output
    accelerated(load(model))
    said = command("cache", "list").output
    assert "file:net.py:make" in said
    assert "embedding" in said
    assert "1 entry" in said
    assert "removed 0 entries" in command("cache", "clear", "--older-than", 1).output
    assert "removed 1 entry" in command("cache", "clear").output
    assert cache.entries() == []
