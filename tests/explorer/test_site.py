"""What a site holds: the model's own numbers, and all that a page needs to come to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skimage
import torch
from explorer_sites import LABELS, browser_runtime, described, network, site_without_graphs
from PIL import Image

import convlens
from convlens import visualization
from convlens.errors import UnsupportedModelError
from convlens.explorer.graphs import NEEDED
from convlens.explorer.site import Sample, write_site
from convlens.gallery import build_from
from convlens.models import Classifier

pytestmark = pytest.mark.slow  # six graphs are exported

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"
GRADIENTS = ("saliency", "guided_backprop", "deconvnet")
# float32 sums in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return network(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def gallery(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five views of the cat."""
    folder = tmp_path_factory.mktemp("gallery") / "gallery"
    with Image.open(CHELSEA) as cat:
        views = [(f"view {n}", "cat", cat.crop((20 * n, 0, 20 * n + 200, 200))) for n in range(5)]
    build_from(views, folder, classifier)
    return folder


@pytest.fixture(scope="module")
def site(classifier: Classifier, gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With all that a site can have."""
    folder = tmp_path_factory.mktemp("explorer") / "site"
    samples = [Sample(CHELSEA, "cat", "Stefan van der Walt, CC0")]
    write_site(classifier, folder, runtime=browser_runtime(), methods=list(NEEDED), samples=samples, gallery=gallery)
    return folder


def x_NCHW(rows: int = 2) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((rows, 3, 24, 32), dtype=np.float32)


def graph_outputs(site: Path, graph: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The graph of that name, run by nothing of ours."""
    session = onnxruntime.InferenceSession(site / described(site)["graphs"][graph]["file"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def method(site: Path, name: str) -> dict[str, Any]:
    return next(entry for entry in described(site)["methods"] if entry["name"] == name)


def test_the_page_learns_how_an_image_becomes_an_input(site: Path) -> None:
    assert described(site)["preprocessing"] == {
        "channels": 3,
        "input_size": [24, 32],
        "resize_size": [30, 40],
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "display_channels": [],
    }


def test_the_page_learns_the_class_names_and_what_makes_probabilities(site: Path) -> None:
    model = described(site)["model"]
    assert model["labels"] == list(LABELS)
    assert model["activation"] == "softmax"


def test_the_graph_of_scores_gives_the_network_s_logits(site: Path, classifier: Classifier) -> None:
    expected = classifier.module(torch.from_numpy(x_NCHW())).detach().numpy()
    found = graph_outputs(site, "scores", {"x_NCHW": x_NCHW()})["logits_NK"]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_s_graph_gives_the_method_s_values(site: Path, classifier: Classifier, name: str) -> None:
    targets = np.array([2, 0])
    expected = convlens.run(name, convlens.ForwardPass(classifier, torch.from_numpy(x_NCHW())), targets).values_NCHW
    assert np.abs(expected).max() > 0
    graph = method(site, name)["graph"]
    found = graph_outputs(site, graph, {"x_NCHW": x_NCHW(), "target_N": targets})["gradient_NCHW"]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())


def test_the_graph_of_maps_gives_grad_cam(site: Path, classifier: Classifier) -> None:
    targets = np.array([2, 0])
    forward = convlens.ForwardPass(classifier, torch.from_numpy(x_NCHW()))
    expected = convlens.run("grad_cam", forward, targets, {"relu": False}).extras["map_NCHW"]
    outputs = graph_outputs(site, "cam", {"x_NCHW": x_NCHW(), "target_N": targets})
    weights_NC11 = outputs["maps_gradient_NCHW"].mean((2, 3), keepdims=True)
    found = (weights_NC11 * outputs["maps_NCHW"]).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())
    assert described(site)["graphs"]["cam"]["layer"] == "activation"


@pytest.mark.parametrize("name", ["scores", "embedding", "cam", *GRADIENTS])
def test_each_graph_is_described_as_its_file_is(site: Path, name: str) -> None:
    graph = described(site)["graphs"][name]
    file = site / graph["file"]
    session = onnxruntime.InferenceSession(file)
    types = {"tensor(float)": "float32", "tensor(int64)": "int64"}
    for ports, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert graph[ports] == [
            {"name": port.name, "dtype": types[port.type], "shape": list(port.shape)} for port in found
        ]
    assert graph["bytes"] == file.stat().st_size


def test_options_have_the_method_s_own_defaults(site: Path) -> None:
    assert method(site, "integrated_gradients")["options"] == {"steps": 50, "baseline": 0.0}
    assert method(site, "grad_cam")["options"] == {"layer": "", "relu": True}


def test_a_method_that_no_page_computes_says_that_a_server_runs_it(site: Path) -> None:
    entry = method(site, "deep_lift")
    assert entry["graph"] is None
    assert "--server" in entry["missing"]


def test_every_other_method_is_there(site: Path) -> None:
    listed = {entry["name"]: entry for entry in described(site)["methods"]}
    assert set(listed) == set(convlens.methods())
    graphs = described(site)["graphs"]
    for name in NEEDED:
        assert listed[name]["missing"] is None
        assert listed[name]["graph"] in graphs


def test_the_colour_tables_are_those_that_maps_are_drawn_with(site: Path) -> None:
    tables = {name: np.array(rows) for name, rows in described(site)["colormaps"].items()}
    values = np.random.default_rng(0).uniform(-1, 1, (8, 8))
    rows = np.rint(np.abs(values) * 255).astype(int)
    np.testing.assert_array_equal(tables["sequential"][rows], visualization.sequential(np.abs(values), limit=1))
    rows = np.rint(values * 255).astype(int) + 255
    np.testing.assert_array_equal(tables["diverging"][rows], visualization.diverging(values, limit=1))
    assert tables["diverging"][255].tolist() == [255, 255, 255]


def test_the_nearest_in_the_site_s_vectors_are_the_gallery_s(site: Path, classifier: Classifier) -> None:
    gallery = described(site)["gallery"]
    vectors = np.fromfile(site / gallery["vectors"], "<f4").reshape(gallery["count"], gallery["dimension"])
    with Image.open(CHELSEA) as cat:
        view = convlens.image.prepare(cat.crop((40, 0, 240, 200)), classifier.spec)
    embedding = graph_outputs(site, "embedding", {"x_NCHW": view.x_CHW[None]})["embedding_ND"][0]
    assert gallery["metric"] == "unit"
    distance = np.linalg.norm(vectors - embedding / np.linalg.norm(embedding), axis=1)
    nearest = gallery["entries"][int(distance.argmin())]
    assert (nearest["id"], nearest["label"]) == ("view 2", "cat")
    assert distance.min() < TOLERANCE
    with Image.open(site / nearest["thumbnail"]) as thumbnail:
        assert thumbnail.format == "JPEG"


def test_a_gallery_brings_neighbours_whichever_methods_are_asked_for(
    tmp_path: Path, classifier: Classifier, gallery: Path
) -> None:
    write_site(classifier, tmp_path / "site", runtime=browser_runtime(), methods=["occlusion"], gallery=gallery)
    assert method(tmp_path / "site", "neighbours")["missing"] is None
    assert method(tmp_path / "site", "saliency")["missing"] is not None


def test_a_network_that_cannot_be_exported_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="scripted"):
        write_site(network(tmp_path, "scripted"), tmp_path / "site", runtime=browser_runtime(), methods=["occlusion"])
    assert not (tmp_path / "site").exists()


def test_a_sample_is_the_photograph(site: Path) -> None:
    (sample,) = described(site)["samples"]
    assert (sample["title"], sample["credit"]) == ("cat", "Stefan van der Walt, CC0")
    with Image.open(site / sample["file"]) as found, Image.open(CHELSEA) as expected:
        assert found.format == "JPEG" and found.size == expected.size
        difference = np.asarray(found, int) - np.asarray(expected, int)
    assert np.abs(difference).mean() < 3  # levels of 255: what JPEG changes


def test_the_command_line_names_the_model_by_its_full_name(site: Path, classifier: Classifier) -> None:
    command = described(site)["commands"]["explain"]
    assert f"--model '{classifier.source}'" in command  # quoted: it holds a question mark and ampersands
    assert command.startswith("convlens explain {file} ")


def test_guided_backprop_of_a_network_without_relu_says_why_it_is_missing(tmp_path: Path) -> None:
    classifier = network(tmp_path, "gelu")
    write_site(classifier, tmp_path / "site", runtime=browser_runtime(), methods=["guided_backprop"])
    entry = method(tmp_path / "site", "guided_backprop")
    assert entry["graph"] is None
    assert "gelu" in entry["missing"].lower()
    assert set(described(tmp_path / "site")["graphs"]) == {"scores", "embedding"}


def test_deconvnet_of_a_network_without_max_pooling_says_why_it_is_missing(tmp_path: Path) -> None:
    classifier = network(tmp_path, "averaging")
    site_without_graphs(classifier, tmp_path / "site")
    assert "lattice" in method(tmp_path / "site", "deconvnet")["missing"]


def test_a_method_that_was_not_asked_for_says_how_to_ask(tmp_path: Path, classifier: Classifier) -> None:
    site_without_graphs(classifier, tmp_path / "site")
    assert "--methods all,saliency" in method(tmp_path / "site", "saliency")["missing"]
    assert "--gallery" in method(tmp_path / "site", "neighbours")["missing"]


def test_a_graph_of_code_that_was_edited_since_is_exported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"runtime": browser_runtime(), "methods": ["saliency"]}
    classifier = network(tmp_path)
    write_site(classifier, tmp_path / "earlier", **options)
    # Modules without weights are no part of the cache's key.
    classifier.module.activation = torch.nn.Tanh().eval()
    write_site(classifier, tmp_path / "site", **options)
    expected = classifier.module(torch.from_numpy(x_NCHW())).detach().numpy()
    feeds = {"x_NCHW": x_NCHW(), "target_N": np.array([2, 0])}
    for found in (
        graph_outputs(tmp_path / "site", "scores", {"x_NCHW": x_NCHW()}),
        graph_outputs(tmp_path / "site", "saliency", feeds),
    ):
        np.testing.assert_allclose(found["logits_NK"], expected, atol=TOLERANCE * np.abs(expected).max())
