"""What the explorer's page computes from exported graphs, held against the library on torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from node_bridge import NODE, ON_PARTIAL, SESSION, JavaScriptError, NodeBridge, node_bridge
from onnxruntime import InferenceSession
from torch import Tensor, nn

import convlens
from convlens.explain import registry
from convlens.models import Classifier
from convlens.runtime.graph_contract import GRADIENT, LOGITS, MAPS, MAPS_GRADIENT, PIXELS, TARGETS, read_contract
from export.gradients.tracing import RULES, Gradient, MapsGradient
from export.wrappers import Scores

pytestmark = pytest.mark.skipif(NODE is None, reason="no node on the PATH")
TARGET = 2
# float32 sums in another order, of the largest value
TOLERANCE = 1e-4


class Small(nn.Module):
    """Two convolutions, and a head that tells the places of its cells apart, so that no two CAM methods agree."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 5 * 7, 4)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features = torch.relu(self.second(torch.max_pool2d(torch.relu(self.first(x_NCHW)), 2)))
        return self.head(features.flatten(1))


class Modules:
    """The modules that are exported, run by torch: a session without the half minute that exporting takes.

    With a ``batch`` it takes no other, as graphs that cannot be traced for any.
    """

    def __init__(self, classifier: Classifier, *, batch: int | None = None) -> None:
        network, spec = classifier.module, classifier.spec
        self._modules: dict[str, nn.Module] = {kind: Gradient(network, rule) for kind, rule in RULES.items()}
        self._modules |= {"scores": Scores(network), "cam": MapsGradient(network, spec.gradcam_layer, 2)}
        self._size, self._batch = (spec.channels, *spec.input_size), batch
        inputs = [{"name": PIXELS, "shape": [batch or "N", *self._size]}]
        self.described: dict[str, Any] = {name: {"inputs": inputs} for name in self._modules}
        self.described["cam"]["layer"] = spec.gradcam_layer

    def __call__(self, graph: str, x: np.ndarray, count: int, targets: list[int] | None) -> dict[str, np.ndarray]:
        assert self._batch in (None, count)
        inputs = [torch.tensor(x).reshape(count, *self._size), *([] if targets is None else [torch.tensor(targets)])]
        outputs = self._modules[graph](*inputs)
        names = {"scores": (LOGITS,), "cam": (MAPS, MAPS_GRADIENT, LOGITS)}.get(graph, (GRADIENT, LOGITS))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.detach().numpy() for name, output in zip(names, outputs, strict=True)}


class Graphs:
    """Sessions of exported graphs."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._sessions = {name: InferenceSession(str(path)) for name, path in files.items()}
        self.described = {name: self._described(name, session) for name, session in self._sessions.items()}

    @staticmethod
    def _described(name: str, session: InferenceSession) -> dict[str, Any]:
        contract = read_contract(session.get_modelmeta().custom_metadata_map, graph=name)
        inputs = [{"name": port.name, "shape": list(port.shape)} for port in contract.inputs]
        return {"inputs": inputs, "layer": next(iter(contract.layers), None)}

    def __call__(self, graph: str, x: np.ndarray, count: int, targets: list[int] | None) -> dict[str, np.ndarray]:
        session = self._sessions[graph]
        feeds = {PIXELS: x.reshape(count, *session.get_inputs()[0].shape[1:])}
        if targets is not None:
            feeds[TARGETS] = np.array(targets, np.int64)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))


def site_of(classifier: Classifier, graphs: Graphs | Modules) -> dict[str, Any]:
    """What the page knows of a model, as far as its numbers need it."""
    spec = classifier.spec
    methods = [registry.get(name) for name in convlens.methods()]
    return {
        "model": {"name": spec.name, "labels": spec.labels, "activation": spec.activation},
        "preprocessing": {"channels": spec.channels, "input_size": spec.input_size},
        "graphs": graphs.described,
        "methods": [
            {
                "name": method.name,
                "drawing": method.drawing,
                "options": {name: default for name, (_, default) in method.options.items()},
                "missing": None,
            }
            for method in methods
        ],
    }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeBridge]:
    with node_bridge(tmp_path_factory.mktemp("page")) as bridge:
        yield bridge


@pytest.fixture(scope="module")
def network() -> Classifier:
    classifier = nets.classifier(nets.seeded(Small).float(), classes=4, crop=20, gradcam_layer="second")
    return replace(classifier, spec=replace(classifier.spec, crop_width=28, resize_width=28))


@pytest.fixture(scope="module")
def graphs(network: Classifier) -> Modules:
    return Modules(network)


@pytest.fixture(scope="module")
def site(network: Classifier, graphs: Modules) -> dict[str, Any]:
    return site_of(network, graphs)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return nets.pictures(3, 20, 28, dtype=torch.float32).numpy()


def explain(
    node: NodeBridge,
    graphs: Graphs | Modules,
    site: dict[str, Any],
    x: np.ndarray,
    name: str,
    *,
    target: int | None = TARGET,
    **options: Any,
) -> dict[str, Any]:
    return node("methods", "explain", name, SESSION, site, x.reshape(-1), target, options, ON_PARTIAL, run=graphs)


def by_torch(network: Classifier, x: np.ndarray, name: str, **options: Any) -> Any:
    return convlens.run(name, convlens.ForwardPass(network, torch.as_tensor(x)[None]), [TARGET], options)


def values_of(result: dict[str, Any]) -> np.ndarray:
    return np.array(result["values"]).reshape(result["dims"])


CASES = [
    ("saliency", {}),
    ("guided_backprop", {}),
    ("deconvnet", {}),
    ("input_x_gradient", {}),
    ("integrated_gradients", {}),
    ("integrated_gradients", {"steps": 7, "baseline": 0.3}),
    ("smoothgrad", {"noise": 0.0, "samples": 3}),
    ("grad_cam", {}),
    ("grad_cam", {"relu": False, "layer": "second"}),
    ("hires_cam", {}),
    ("hires_cam", {"relu": False}),
    ("layer_cam", {}),
    ("grad_cam_plus_plus", {}),
    ("guided_grad_cam", {}),
    ("occlusion", {"window": 8, "stride": 5}),
    ("occlusion", {"window": [6, 9, 24], "stride": 6, "fill": -1.5}),
    ("occlusion", {"window": 7, "stride": 7, "score": "probability"}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda case: str(case).replace(" ", ""))
def test_a_method_in_the_page_equals_the_library(node, graphs, site, network, x, name, options):
    found, expected = explain(node, graphs, site, x, name, **options), by_torch(network, x, name, **options)
    assert nets.relative_error(values_of(found), expected.values_NCHW[0]) <= TOLERANCE
    assert found["meta"]["score"] == pytest.approx(float(expected.score_N[0]), rel=1e-5)
    assert found["meta"]["target"] == TARGET
    assert found["drawing"] == registry.get(name).drawing


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus"])
def test_a_coarse_map_comes_with_its_cells(node, graphs, site, network, x, name):
    cells = explain(node, graphs, site, x, name)["cells"]
    expected_HW = by_torch(network, x, name).extras["map_NCHW"][0]
    assert nets.relative_error(values_of(cells), expected_HW) <= TOLERANCE


@pytest.mark.parametrize(("steps", "has_warning"), [(3, True), (200, False)])
def test_integrated_gradients_state_the_gap_and_warn_of_a_wide_one(node, graphs, site, network, x, steps, has_warning):
    meta = explain(node, graphs, site, x, "integrated_gradients", steps=steps, baseline=-0.5)["meta"]
    expected = by_torch(network, x, "integrated_gradients", steps=steps, baseline=-0.5)
    assert meta["gap"] == pytest.approx(float(expected.extras["gap_N"][0]), abs=1e-5)
    assert meta["warnings"] == list(expected.meta.warnings)
    assert bool(meta["warnings"]) is has_warning


@pytest.mark.parametrize("count", [2, 3, 50, 1000])
def test_quadrature_nodes_are_numpys(node, count):
    nodes, weights = np.polynomial.legendre.leggauss(count)
    found = node("gradients", "gaussLegendre", count)
    np.testing.assert_allclose(found["nodes"], nodes, rtol=0, atol=1e-14)  # a few ulp near 1
    np.testing.assert_allclose(found["weights"], weights, rtol=0, atol=1e-12)


def test_smoothgrad_without_noise_is_saliency_and_nears_the_librarys_with_it(node, graphs, site, network, x):
    found = explain(node, graphs, site, x, "smoothgrad", samples=400, noise=0.15)
    expected = by_torch(network, x, "smoothgrad", samples=400, noise=0.15)
    correlation = np.corrcoef(values_of(found).reshape(-1), expected.values_NCHW.reshape(-1))[0, 1]
    plain = by_torch(network, x, "saliency").values_NCHW.reshape(-1)
    assert correlation > 0.99  # other draws
    assert correlation > np.corrcoef(plain, expected.values_NCHW.reshape(-1))[0, 1]
    assert found["meta"]["seed"] == 0
    assert "other draws than torch's" in found["meta"]["noise"]


def test_smoothgrad_draws_the_same_for_the_same_seed_and_other_for_another(node, graphs, site, x):
    maps = [values_of(explain(node, graphs, site, x, "smoothgrad", samples=5, seed=seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert np.abs(maps[0] - maps[2]).max() > 0.01 * np.abs(maps[0]).max()


def test_the_noise_of_smoothgrad_is_normal_with_the_shares_deviation(node, graphs, site, x):
    """Read off the images that the graph gets: the first ones less the image itself."""
    seen: list[np.ndarray] = []

    def watched(graph: str, images: np.ndarray, count: int, targets: list[int] | None) -> dict[str, np.ndarray]:
        if graph == "saliency":
            seen.append(images.reshape(count, -1))
        return graphs(graph, images, count, targets)

    node("methods", "explain", "smoothgrad", SESSION, site, x.reshape(-1), TARGET, {"noise": 0.2}, run=watched)
    noise = (np.concatenate(seen) - x.reshape(-1)) / (0.2 * (x.max() - x.min()))
    assert noise.shape == (25, x.size)
    # 42,000 draws: four standard errors of mean, deviation and the normal distribution's quartile
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, abs=0.014)
    assert (noise < 0.6745).mean() == pytest.approx(0.75, abs=0.0085)


def test_an_occlusion_map_fills_in_batch_by_batch(node, graphs, site, network, x):
    found = explain(node, graphs, site, x, "occlusion", window=8, stride=8)
    partials = node.partials
    assert [partial["done"] for partial in partials] == [4, 8, 12]
    assert {partial["total"] for partial in partials} == {12}  # 3 rows of 4
    np.testing.assert_array_equal(partials[-1]["values"], found["values"])
    first_HW = partials[0]["values"].reshape(20, 28)  # the row of windows at the top
    assert (first_HW[8:] == 0).all()
    np.testing.assert_array_equal(first_HW[:8], values_of(found)[0, :8])


@pytest.mark.parametrize("name", ["integrated_gradients", "occlusion"])
def test_a_graph_of_one_batch_size_gives_the_same_map(node, network, x, name):
    fixed = Modules(network, batch=3)
    options = {"window": 9, "stride": 7} if name == "occlusion" else {"steps": 4}
    found = explain(node, fixed, site_of(network, fixed), x, name, **options)
    expected = by_torch(network, x, name, **options).values_NCHW[0]
    assert nets.relative_error(values_of(found), expected) <= TOLERANCE


def test_the_predicted_class_is_explained_where_none_is_given(node, graphs, site, network, x):
    with torch.no_grad():
        predicted = int(network.module(torch.as_tensor(x)[None]).argmax())
    assert explain(node, graphs, site, x, "saliency", target=None)["meta"]["target"] == predicted


@pytest.mark.parametrize(
    "windows",
    [
        [{"left": 3, "top": 5, "width": 6, "height": 4}],
        [{"left": -4, "top": 12, "width": 9, "height": 30}, {"left": 20, "top": 0, "width": 3, "height": 3}],
    ],
    ids=["one", "two, over the edge"],
)
@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_hiding_a_window_gives_the_networks_scores_without_it(node, graphs, site, network, x, windows, fill):
    hidden = torch.as_tensor(x)[None].clone()
    for window in windows:
        top, left = max(0, window["top"]), max(0, window["left"])
        hidden[:, :, top : window["top"] + window["height"], left : window["left"] + window["width"]] = fill
    with torch.no_grad():
        expected_K = network.module(hidden)[0]
    found = node("methods", "hideWindow", SESSION, site, x.reshape(-1), windows, fill, run=graphs)
    np.testing.assert_allclose(found, expected_K, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_probabilities_are_torchs(node, activation):
    logits = np.array([3.0, -700.0, 0.5, 1000.0, 999.0], np.float32)
    exact = torch.as_tensor(logits).double()
    expected = {"softmax": exact.softmax(0), "sigmoid": exact.sigmoid(), "none": exact}[activation]
    np.testing.assert_allclose(node("methods", "probabilities", logits, activation), expected, rtol=1e-12)


def test_equal_probabilities_come_in_the_order_of_their_classes(node):
    top = node("methods", "topClasses", [0.2, 0.3, 0.2, 0.3, 0.0], 4)
    assert [each["index"] for each in top] == [1, 3, 0, 2]
    assert [each["probability"] for each in top] == [0.3, 0.3, 0.2, 0.2]


def test_a_network_without_classes_is_explained_by_its_likeness_to_itself(node, graphs, network, x):
    spec = replace(network.spec, labels=())
    classless = replace(network, spec=spec)
    site = site_of(classless, graphs)
    found = explain(node, graphs, site, x, "occlusion", target=None, window=8, stride=6)
    forward = convlens.ForwardPass(classless, torch.as_tensor(x)[None])
    expected = convlens.run("occlusion", forward, None, {"window": 8, "stride": 6})
    assert nets.relative_error(values_of(found), expected.values_NCHW[0]) <= TOLERANCE
    with pytest.raises(JavaScriptError, match="saliency explains a class, and this network gives embeddings"):
        explain(node, graphs, site, x, "saliency", target=None)


BAD = [
    ("saliencey", {}, 'no method "saliencey" here; there are: deconvnet'),
    ("rise", {}, 'no method "rise" here'),
    ("saliency", {"target": 4}, "target 4 is out of range; classes are 0..3"),
    ("saliency", {"score": "probability"}, "gives gradients of logits only; use score=logit"),
    ("saliency", {"steps": 3}, 'saliency has no option "steps"; there are: score'),
    ("integrated_gradients", {"steps": 1}, "steps=1 is out of range; use 2..1000"),
    ("integrated_gradients", {"steps": 2.5}, "steps=2.5 is no whole number"),
    ("smoothgrad", {"noise": "much"}, "noise=much is out of range; use 0..1"),
    ("grad_cam", {"layer": "first"}, 'no graph of cam of layer "first"; there is: "second"'),
    ("grad_cam", {"relu": 1}, "relu=1 is neither true nor false"),
    ("occlusion", {"window": 8, "stride": 9}, "stride=9 with window=8 would skip pixels; use 1..8"),
    ("occlusion", {"window": [8, 8]}, "a window is named twice in 8, 8"),
    ("occlusion", {"score": "loss"}, 'no score "loss"; there are: logit, probability'),
    ("occlusion", {"strategy": "incremental"}, "made in full and in float32"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=lambda case: str(case)[:30])
def test_what_cannot_be_explained_is_refused_in_words(node, graphs, site, x, name, options, message):
    with pytest.raises(JavaScriptError) as error:
        explain(node, graphs, site, x, name, **options)
    assert message in str(error.value)


def test_a_graph_that_the_site_lacks_is_named_with_the_remedy(node, graphs, site, x):
    poorer = site | {"graphs": {"scores": graphs.described["scores"]}}
    with pytest.raises(
        JavaScriptError, match=r"guided_grad_cam needs the graph of guided_backprop, .* convlens export"
    ):
        explain(node, graphs, poorer, x, "guided_grad_cam")


def test_a_window_beside_the_image_is_refused(node, graphs, site, x):
    window = {"left": 30, "top": 0, "width": 5, "height": 5}
    with pytest.raises(JavaScriptError, match="hides nothing of the 20 x 28 pixels"):
        node("methods", "hideWindow", SESSION, site, x.reshape(-1), window, run=graphs)


def test_scores_that_are_not_finite_are_an_error(node, graphs, site, x):
    with pytest.raises(JavaScriptError, match="NaN or infinite for this image; its weights may be damaged"):
        explain(node, graphs, site, np.full_like(x, np.nan), "saliency")


# ---- the default model


@pytest.fixture(scope="module")
def default(default_bundle: Any) -> tuple[Classifier, Graphs]:
    """Without a graph of maps, whose export takes half a minute: small networks' maps stand for it."""
    files = {"scores": "embedding", "saliency": "saliency", "guided_backprop": "guided_backprop"}
    paths = {name: default_bundle.folder / f"{kind}.onnx" for name, kind in files.items()}
    return convlens.load(device="cpu"), Graphs(paths)


def by_library(classifier: Classifier, x: np.ndarray, name: str, options: dict[str, Any]) -> np.ndarray:
    forward = convlens.ForwardPass(classifier, torch.as_tensor(x)[None])
    return convlens.run(name, forward, [281], options).values_NCHW[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("saliency", {}),
        ("guided_backprop", {}),
        ("input_x_gradient", {}),
        ("occlusion", {"window": 64, "stride": 40}),
    ],
    ids=str,
)
def test_the_default_model_is_explained_as_by_the_library(node, default, name, options):
    classifier, graphs = default
    x = nets.photograph("chelsea.png", classifier.spec)[0].numpy()
    found = explain(node, graphs, site_of(classifier, graphs), x, name, target=281, **options)
    assert nets.relative_error(values_of(found), by_library(classifier, x, name, options)) <= TOLERANCE


@pytest.mark.slow
def test_a_path_through_the_default_model_is_integrated_as_by_the_library(node, default):
    classifier, graphs = default
    x = nets.photograph("chelsea.png", classifier.spec)[0].numpy()
    found = explain(node, graphs, site_of(classifier, graphs), x, "integrated_gradients", target=281, steps=6)
    expected = by_library(classifier, x, "integrated_gradients", {"steps": 6})
    # On the way units lie within rounding of 0, on in one runtime and off in the other: single pixels of a gradient
    # then differ by up to 4 % of the largest, torch's from those in float64 by as much as the graph's.
    assert np.linalg.norm(values_of(found) - expected) <= 1e-2 * np.linalg.norm(expected)
