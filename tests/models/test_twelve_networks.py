"""Twelve networks of different kinds: explanations, neighbours and graphs as plain torch has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import own_networks
import pytest
import torch
from captum.attr import GuidedBackprop
from graph_cache import GraphCache
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional

from convlens.engine.rendering import top_predictions
from convlens.errors import UnsupportedModelError
from convlens.explain import ForwardPass, GraphForward, GraphModel, run
from convlens.gallery import build_from
from convlens.image import ChannelImage, prepare
from convlens.models import Classifier, wrap
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.types import Attribution, Neighbourhood
from export.bundle import bundle

SIDE = 16


@dataclass(frozen=True)
class Kind:
    """A network, how it is wrapped, and the logits (N, K) that plain torch reads off its output."""

    make: Callable[[], nn.Module]
    logits: Callable[[Any], Tensor] = lambda out: out
    options: dict[str, Any] = field(default_factory=dict)
    channels: int = 3
    size: tuple[int, int] = (SIDE, SIDE)
    around: Callable[[nn.Module], nn.Module] = lambda module: module
    tolerance: float = 1e-6


KINDS = {
    "binary, grey": Kind(
        own_networks.binary_grey, lambda out: torch.cat([-out, out], 1), {"mean": [0.5], "std": [0.25]}, channels=1
    ),
    "six channels": Kind(own_networks.six_channels, options={"mean": [0.5] * 6, "std": [0.25] * 6}, channels=6),
    "multi-label": Kind(own_networks.multi_label, lambda out: torch.logit(out.double()).float()),
    "rectangle": Kind(own_networks.rectangle, size=(12, 20)),
    "cosines": Kind(own_networks.cosines, tolerance=2e-5),  # of logits up to 16
    "dictionary": Kind(own_networks.dictionary, lambda out: out["logits"]),
    "features": Kind(own_networks.features),
    "float64": Kind(own_networks.doubles),
    "autocast": Kind(own_networks.autocast, lambda out: out.float()),
    "compiled": Kind(own_networks.rectangle, around=torch.compile),
    "DataParallel": Kind(own_networks.rectangle, around=nn.DataParallel),
    "21,841 classes": Kind(own_networks.many_classes),
}
WITH_CLASSES = [name for name in KINDS if name != "features"]


@dataclass(frozen=True)
class Case:
    kind: Kind
    plain: nn.Module
    classifier: Classifier
    x_NCHW: np.ndarray

    def logits_NK(self, x: Tensor) -> Tensor:
        return self.kind.logits(self.plain(x))


def case(name: str) -> Case:
    kind = KINDS[name]
    plain = kind.make().eval().float()
    classifier = wrap(kind.around(kind.make().eval()), size=kind.size, **kind.options)
    x_NCHW = np.random.default_rng(3).normal(size=(2, kind.channels, *kind.size)).astype(np.float32)
    return Case(kind, plain, classifier, x_NCHW)


def explained(given: Case, method: str, target: int, **options: Any) -> Attribution:
    forward = ForwardPass(given.classifier, given.x_NCHW)
    result = run(method, forward, [target] * 2 if given.classifier.spec.classes else None, options)
    assert isinstance(result, Attribution)
    return result


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_scores_and_saliency_are_those_of_plain_torch(name: str) -> None:
    given = case(name)
    x = torch.tensor(given.x_NCHW, requires_grad=True)
    logits_NK = given.logits_NK(x)
    (gradient,) = torch.autograd.grad(logits_NK[:, 1].sum(), x)
    result = explained(given, "saliency", 1)
    np.testing.assert_allclose(result.score_N, logits_NK[:, 1].detach(), atol=given.kind.tolerance)
    np.testing.assert_allclose(result.values_NCHW, gradient, atol=given.kind.tolerance)


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_guided_backprop_is_captums(name: str) -> None:
    given = case(name)

    class Logits(nn.Module):
        """captum wants one tensor of logits."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = given.plain

        def forward(self, x: Tensor) -> Tensor:
            return given.kind.logits(self.inner(x))

    expected = GuidedBackprop(Logits()).attribute(torch.tensor(given.x_NCHW, requires_grad=True), target=1)
    result = explained(given, "guided_backprop", 1)
    np.testing.assert_allclose(result.values_NCHW, expected.detach(), atol=given.kind.tolerance)


@pytest.mark.parametrize("name", KINDS)
def test_occlusion_is_a_loop_over_windows(name: str) -> None:
    given, side = case(name), 4
    height, width = given.kind.size
    own = given.logits_NK(torch.tensor(given.x_NCHW)).detach()

    def score(x_NCHW: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out = given.logits_NK(torch.tensor(x_NCHW))
        return (out[:, 1] if given.classifier.spec.classes else functional.cosine_similarity(out, own)).numpy()

    expected = np.zeros((2, height // side, width // side), np.float32)
    for row in range(height // side):
        for column in range(width // side):
            hidden = given.x_NCHW.copy()
            hidden[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = 0
            expected[:, row, column] = score(given.x_NCHW) - score(hidden)
    result = explained(given, "occlusion", 1, window=side, stride=side)
    # Networks that lower their precision round each batch in its own way.
    tolerance = 0.02 if name == "autocast" else given.kind.tolerance
    np.testing.assert_allclose(result.extras["grid_NRQ"], expected, atol=tolerance)


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_grad_cam_is_the_weighted_sum_of_the_last_maps(name: str) -> None:
    given = case(name)
    caught: list[Tensor] = []
    handle = given.plain.features.register_forward_hook(lambda _, __, out: caught.append(out.requires_grad_()))
    logits_NK = given.logits_NK(torch.tensor(given.x_NCHW, requires_grad=True))
    handle.remove()
    (gradient,) = torch.autograd.grad(logits_NK[:, 1].sum(), caught[0])
    weight_NC11 = gradient.float().mean((2, 3), keepdim=True)
    cam_NHW = (weight_NC11 * caught[0].float()).sum(1).clamp(min=0).detach()
    expected = functional.interpolate(cam_NHW[:, None], size=given.kind.size, mode="bilinear")
    assert given.classifier.spec.gradcam_layer == "features"
    result = explained(given, "grad_cam", 1)
    np.testing.assert_allclose(result.values_NCHW, expected, atol=given.kind.tolerance)


def pictures(count: int, channels: int) -> list[Any]:
    """Noise, as Pillow has it, or of channels that Pillow does not have."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, 24, 24, channels), dtype=np.uint8)
    return [Image.fromarray(each) if channels == 3 else ChannelImage(each) for each in pixels]


EMBEDDINGS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "cosines": lambda plain, x: plain.embedding(plain.features(x).mean((2, 3))),
}


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("compiled", "DataParallel", "autocast")])
def test_neighbours_are_those_of_brute_force(name: str, tmp_path: Path) -> None:
    given = case(name)
    images = pictures(9, given.kind.channels)
    named = [(f"p{n}", f"label {n}", image) for n, image in enumerate(images[:7])]
    gallery = build_from(named, tmp_path, given.classifier, feature_space="raw").gallery
    x_NCHW = np.stack([prepare(image, given.classifier.spec).x_CHW for image in images])
    embed = EMBEDDINGS.get(name, lambda plain, x: plain.features(x).mean((2, 3)))
    with torch.no_grad():
        vectors_ND = embed(given.plain, torch.tensor(x_NCHW)).double().numpy()
    answer = run("neighbours", ForwardPass(given.classifier, x_NCHW[7:], gallery=gallery), None, {"k": 3})
    assert isinstance(answer, Neighbourhood)
    distance = cdist(vectors_ND[7:], vectors_ND[:7])
    for n, row in enumerate(answer.neighbours_NM):
        assert [near.id for near in row] == [f"p{m}" for m in np.argsort(distance[n])[:3]]
        np.testing.assert_allclose([near.distance for near in row], np.sort(distance[n])[:3], rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["binary, grey", "six channels", "multi-label", "rectangle", "cosines", "dictionary", "features"]
)
def test_graphs_give_what_plain_torch_gives(name: str, exported: GraphCache) -> None:
    given = case(name)
    x = torch.tensor(given.x_NCHW, requires_grad=True)
    logits_NK = given.logits_NK(x)
    runtime = OnnxRuntime(exported(given.classifier, "embedding"), providers="cpu")
    np.testing.assert_allclose(runtime.logits(given.x_NCHW), logits_NK.detach(), atol=2e-5)
    if not given.classifier.spec.classes:
        return
    (gradient,) = torch.autograd.grad(logits_NK[:, 1].sum(), x)
    saliency = OnnxRuntime(exported(given.classifier, "saliency"), providers="cpu")
    given_NCHW, _ = saliency.gradient(given.x_NCHW, np.array([1, 1]))
    np.testing.assert_allclose(given_NCHW, gradient, atol=2e-5)


@pytest.mark.parametrize("name", ["binary, grey", "dictionary"])
def test_all_kinds_of_graphs_give_what_the_methods_give(name: str, exported: GraphCache) -> None:
    given, target_N = case(name), np.array([1, 1])
    for kind in ("guided_backprop", "deconvnet"):
        graph = OnnxRuntime(exported(given.classifier, kind), providers="cpu")
        gradient_NCHW, _ = graph.gradient(given.x_NCHW, target_N)
        np.testing.assert_allclose(gradient_NCHW, explained(given, kind, 1).values_NCHW, atol=1e-6)
    scores = OnnxRuntime(exported(given.classifier, "scores"), providers="cpu").logits(given.x_NCHW)
    with torch.no_grad():
        np.testing.assert_allclose(scores, given.logits_NK(torch.tensor(given.x_NCHW)), atol=1e-6)
    sweep = OnnxRuntime(exported(given.classifier, "occlusion", window=4, stride=4), providers="cpu")
    drops = explained(given, "occlusion", 1, window=4, stride=4).extras["grid_NRQ"]
    np.testing.assert_allclose(scores[0, 1] - sweep.sweep(given.x_NCHW[0], 1), drops[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["saliency", "guided_backprop", "deconvnet", "occlusion"])
def test_graphs_of_a_class_are_refused_for_a_network_without_classes(kind: str, tmp_path: Path) -> None:
    from export.exporter import export

    with pytest.raises(UnsupportedModelError, match="explains a class, and this network gives embeddings"):
        export(case("features").classifier, kind, tmp_path / "graph.onnx")  # type: ignore[call-overload]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["multi-label", "features"])
def test_a_wrapped_network_is_packed_as_its_graphs(name: str, tmp_path: Path) -> None:
    given = case(name)
    made = bundle(given.classifier, tmp_path / "graphs", kinds=("embedding", "saliency"))
    model = GraphModel.open(made.folder, providers="cpu")
    forward = GraphForward(model, given.x_NCHW[:1])
    with torch.no_grad():
        out = given.plain(torch.tensor(given.x_NCHW[:1]))
        features_ND = given.plain.features(torch.tensor(given.x_NCHW[:1])).mean((2, 3))
    np.testing.assert_allclose(forward.embedding_ND, features_ND, atol=1e-5)
    expected = {} if name == "features" else dict(enumerate(out[0].tolist()))  # the sigmoids that the network ends in
    assert {p.index: p.probability for p in top_predictions(forward, 9)} == pytest.approx(expected, abs=1e-6)
    assert [kind for kind, _ in made.skipped] == (["saliency"] if name == "features" else [])
    if name == "features":
        result = run("occlusion", forward, None, {"window": 4, "stride": 4})
        by_torch = run("occlusion", ForwardPass(given.classifier, given.x_NCHW[:1]), None, {"window": 4, "stride": 4})
        assert isinstance(result, Attribution)
        assert isinstance(by_torch, Attribution)
        np.testing.assert_allclose(result.extras["grid_NRQ"], by_torch.extras["grid_NRQ"], atol=1e-5)
