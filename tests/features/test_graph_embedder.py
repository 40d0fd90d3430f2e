"""An exported graph in the model's place: the same features, of the same weights, or a refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extractions import extraction, interrupted, mixed, photographs
from graph_cache import GraphCache

from convlens.errors import GalleryError, ModelError, RequestError
from convlens.features.embedder import Embedder, graph_embedder
from convlens.gallery import Gallery, build


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("graphs") / "pictures", 11, broken=(4,))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, exported: GraphCache) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    wanted: dict[str, dict[str, Any]] = {
        "floats": {},
        "bytes": {"preprocessing": True},
        "bound": {"dynamic_batch": False, "batch": 3},
        "larger": {"input_size": 16},
    }
    for name, options in wanted.items():
        (folder / f"{name}.onnx").symlink_to(exported(mixed(), "embedding", **options))
    (folder / "scores.onnx").symlink_to(exported(mixed(), "scores"))
    return folder


@pytest.fixture(scope="module")
def in_torch(images: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    out = tmp_path_factory.mktemp("torch") / "out"
    extraction(images, out)
    return np.load(out / "features.npy")


def embedder(graph: Path) -> Embedder:
    return graph_embedder(mixed(), graph)


@pytest.mark.parametrize("name", ["floats", "bytes", "bound"])
def test_a_graph_gives_torchs_features(
    tmp_path: Path, images: Path, graphs: Path, in_torch: np.ndarray, name: str
) -> None:
    done = extraction(images, tmp_path / "out", embedder(graphs / f"{name}.onnx"))
    assert done.rows == 10
    found = np.load(tmp_path / "out" / "features.npy")
    # float32 sums in another order
    np.testing.assert_allclose(found, in_torch, rtol=0, atol=1e-5 * np.abs(in_torch).max())
    said = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert said["runtime"] == "onnxruntime:CPUExecutionProvider"


def test_a_graph_of_another_size_gets_images_of_that_size(tmp_path: Path, images: Path, graphs: Path) -> None:
    extraction(images, tmp_path / "out", embedder(graphs / "larger.onnx"))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["crop"] == 16


def test_a_graph_of_other_weights_is_refused_with_both_hashes(graphs: Path) -> None:
    with pytest.raises(ModelError, match=f"from weights {0:064d} of test:net, but test:net has {1:064d}"):
        graph_embedder(mixed(1), graphs / "floats.onnx")


def test_a_graph_of_another_kind_is_refused(graphs: Path) -> None:
    with pytest.raises(ModelError, match=r"is of kind 'scores' .*needs a graph of kind 'embedding' of layer head"):
        embedder(graphs / "scores.onnx")


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be opened"):
        embedder(tmp_path / "missing.onnx")


def test_a_graph_does_not_go_on_with_what_torch_began(tmp_path: Path, images: Path, graphs: Path) -> None:
    interrupted(images, tmp_path / "out", after=5)
    with pytest.raises(RequestError, match="runtime was torch and is onnxruntime:CPUExecutionProvider"):
        extraction(images, tmp_path / "out", embedder(graphs / "floats.onnx"))


def test_a_gallery_filled_by_the_graph_is_the_gallery_filled_by_torch(
    tmp_path: Path, images: Path, graphs: Path, in_torch: np.ndarray
) -> None:
    report = build(images, tmp_path / "gallery", mixed(), graph=graphs / "bytes.onnx", feature_space="raw")
    assert (report.added, [id for id, _ in report.unreadable]) == (10, ["b/004.jpg"])
    gallery = Gallery.open(tmp_path / "gallery")
    expected = np.linalg.norm(in_torch[3] - in_torch, axis=1)
    (found,) = gallery.query(in_torch[3:4], k=10)
    assert found[0].id == gallery.entries[3].id
    np.testing.assert_allclose([each.distance for each in found], sorted(expected), atol=1e-5 * np.abs(in_torch).max())


def test_a_gallery_refuses_a_graph_that_sees_other_images(tmp_path: Path, images: Path, graphs: Path) -> None:
    with pytest.raises(GalleryError, match=r"crop=16.* sees images otherwise than test:net \(crop=12"):
        build(images, tmp_path / "gallery", mixed(), graph=graphs / "larger.onnx")


def test_a_gallery_and_a_server_load_no_parquet() -> None:
    script = (
        "import sys, convlens.gallery.builder, convlens.features.extract, handlers.convlens_handler; "
        "print(sorted({'pyarrow', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"
