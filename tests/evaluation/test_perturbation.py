"""Insertion and deletion against closed forms, a slow twin in numpy, and Quantus."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from graph_cache import GraphCache
from nets import classifier
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from convlens.errors import RequestError, UnsupportedModelError
from convlens.evaluation.perturbation import CurveProtocol, ImageCurves, blurred, perturbation_curves
from convlens.evaluation.relevance import pixel_order, relevance
from convlens.explain import ForwardPass
from convlens.models import Classifier
from convlens.runtime.graph_contract import labels_sha256
from convlens.runtime.graph_set import open_graphs
from convlens.types import Floats, ModelSpec, Step

SIDE, STEPS = 8, 16
ON_MEAN = CurveProtocol(STEPS, insertion_substrate="mean")


class Additive(nn.Module):
    """Logit 0 is the sum over pixels of weight times mean over channels, logit 1 is 0."""

    def __init__(self, weight_HW: Floats) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight_HW))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = (self.weight * x.mean(1)).sum((1, 2))
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def forward_of(module: nn.Module, x_NCHW: Floats, **options: object) -> ForwardPass:
    network = classifier(module, classes=2, crop=x_NCHW.shape[-1], embedding_layer="")
    return ForwardPass(network, x_NCHW, **options)  # type: ignore[arg-type]


@pytest.fixture
def contribution_HW() -> Floats:
    return np.random.default_rng(3).permutation(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.float64) / 100


def additive(contribution_HW: Floats) -> ForwardPass:
    return forward_of(Additive(contribution_HW), np.ones((1, 3, SIDE, SIDE)))


def test_deletion_in_the_true_order_takes_the_largest_contributions_first(contribution_HW: Floats) -> None:
    curve = perturbation_curves(additive(contribution_HW), 0, pixel_order(contribution_HW), ["deletion"], ON_MEAN)
    # 63, 62, … hundredths fall away, four a step: after n steps the sum of the numbers below 64 - 4n is left.
    left = [sum(range(64 - 4 * n)) / 100 for n in range(STEPS + 1)]
    np.testing.assert_allclose(curve["deletion"].logit_S, left, atol=1e-9)
    by_hand = sum((a + b) / 2 for a, b in itertools.pairwise(left)) / STEPS
    assert curve["deletion"].auc("logit") == pytest.approx(by_hand)


def test_insertion_on_the_mean_mirrors_deletion_in_the_reverse_order(contribution_HW: Floats) -> None:
    order = pixel_order(contribution_HW)
    curves = perturbation_curves(additive(contribution_HW), 0, order, ["insertion"], ON_MEAN)
    reverse = perturbation_curves(additive(contribution_HW), 0, order[::-1], ["deletion"], ON_MEAN)
    np.testing.assert_allclose(curves["insertion"].logit_S, reverse["deletion"].logit_S[::-1], atol=1e-9)


def test_no_order_deletes_faster_than_the_true_one(contribution_HW: Floats) -> None:
    forward, generator = additive(contribution_HW), np.random.default_rng(0)
    best = perturbation_curves(forward, 0, pixel_order(contribution_HW), ["deletion"], ON_MEAN)["deletion"].logit_S
    for _ in range(20):
        order = generator.permutation(SIDE * SIDE)
        other = perturbation_curves(forward, 0, order, ["deletion"], ON_MEAN)["deletion"].logit_S
        assert (other >= best - 1e-9).all()


def test_random_orders_are_at_chance(contribution_HW: Floats) -> None:
    """Each pixel is deleted half way on average, so half of the score is the mean area."""
    forward, generator = additive(contribution_HW), np.random.default_rng(0)
    areas = [
        perturbation_curves(forward, 0, generator.permutation(SIDE * SIDE), ["deletion"], ON_MEAN)["deletion"].auc(
            "logit"
        )
        for _ in range(200)
    ]
    chance = contribution_HW.sum() / 2
    assert np.mean(areas) == pytest.approx(chance, abs=4 * np.std(areas) / np.sqrt(len(areas)))


def test_the_probability_is_that_of_the_logits(contribution_HW: Floats) -> None:
    curve = perturbation_curves(additive(contribution_HW), 0, pixel_order(contribution_HW), ["deletion"], ON_MEAN)
    sigmoid = 1 / (1 + np.exp(-curve["deletion"].logit_S))  # of two classes, one of which is always 0
    np.testing.assert_allclose(curve["deletion"].probability_S, sigmoid, atol=1e-9)


# --- a network --------------------------------------------------------------------------------------------------------


def small_network(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 2)
    ).double()


def blurred_by_hand(image_CHW: Floats) -> Floats:
    """A Gaussian of 5 pixels in a square of 11, the border mirrored without repeating the edge."""
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 5.0**2))
    kernel /= kernel.sum()
    padded = np.pad(image_CHW, ((0, 0), (5, 5), (5, 5)), mode="reflect")
    height, width = image_CHW.shape[1:]
    shifted = [padded[:, y : y + height, x : x + width] * kernel[y, x] for y in range(11) for x in range(11)]
    return np.sum(shifted, axis=0)


def curve_by_hand(kind: str, module: nn.Module, image_CHW: Floats, map_HW: Floats, steps: int) -> Floats:
    """Probabilities of class 0 from Petsiuk et al.'s algorithm, pixel by pixel."""
    ranked = sorted(np.ndindex(*map_HW.shape), key=lambda at: -map_HW[at])
    canvas = blurred_by_hand(image_CHW) if kind == "insertion" else image_CHW.copy()
    scores, done = [], 0
    for step in range(steps + 1):
        while done < round(step * len(ranked) / steps):
            y, x = ranked[done]
            canvas[:, y, x] = image_CHW[:, y, x] if kind == "insertion" else 0.0
            done += 1
        with torch.no_grad():
            scores.append(float(module(torch.as_tensor(canvas)[None]).softmax(1)[0, 0]))
    return np.asarray(scores)


@pytest.mark.parametrize("kind", ["insertion", "deletion"])
@pytest.mark.parametrize("steps", [7, 22])  # 50176 pixels do not divide evenly
def test_curves_equal_a_twin_that_goes_pixel_by_pixel(kind: str, steps: int) -> None:
    generator, module, side = np.random.default_rng(1), small_network(), 224
    image_CHW, map_HW = generator.standard_normal((3, side, side)), generator.random((side, side))
    forward = forward_of(module, image_CHW[None])
    curves = perturbation_curves(forward, 0, pixel_order(map_HW), ["insertion", "deletion"], CurveProtocol(steps))
    expected_S = curve_by_hand(kind, module, image_CHW, map_HW, steps)
    np.testing.assert_allclose(curves[kind].probability_S, expected_S, atol=1e-6)  # type: ignore[index]


def test_deletion_equals_pixel_flipping_by_quantus() -> None:
    try:
        import quantus
    except ImportError as error:
        pytest.skip(f"Quantus cannot be imported here: {error}")  # OpenCV needs libGL
    generator, module, side = np.random.default_rng(2), small_network(channels=1).float(), 16
    x_NCHW = generator.standard_normal((3, 1, side, side)).astype(np.float32)
    map_NHW = generator.random((3, side, side)).astype(np.float32)
    flipping = quantus.PixelFlipping(
        features_in_step=16, perturb_baseline=0.0, abs=False, normalise=False, disable_warnings=True
    )
    expected = flipping(
        model=module.eval(),
        x_batch=x_NCHW,
        y_batch=np.array([0, 1, 0]),
        a_batch=map_NHW[:, None],
        device="cpu",
        softmax=True,
    )
    for n, target in enumerate((0, 1, 0)):
        forward = forward_of(module, x_NCHW[n : n + 1])
        curve = perturbation_curves(forward, target, pixel_order(map_NHW[n]), ["deletion"], CurveProtocol(16))
        # Quantus leaves the whole image's score out.
        np.testing.assert_allclose(curve["deletion"].probability_S[1:], expected[n], atol=1e-6)


def test_the_ends_are_the_image_and_the_substrate() -> None:
    module, image_CHW = small_network(), np.random.default_rng(4).standard_normal((3, 224, 224))
    forward, order = forward_of(module, image_CHW[None]), np.arange(224 * 224)
    curves = perturbation_curves(forward, 1, order, ["insertion", "deletion"])
    with torch.no_grad():
        ends = torch.as_tensor(np.stack([image_CHW, np.zeros_like(image_CHW), blurred_by_hand(image_CHW)]))
        whole, grey, blurred = module(ends)[:, 1].tolist()
    assert curves["deletion"].logit_S[[0, -1]] == pytest.approx([whole, grey], abs=1e-6)
    assert curves["insertion"].logit_S[[0, -1]] == pytest.approx([blurred, whole], abs=1e-6)


@pytest.mark.parametrize(("side", "kernel", "sigma"), [(224, 11, 5.0), (112, 5, 2.5), (300, 15, 5 * 300 / 224)])
def test_the_blur_is_torchvision_s_in_proportion_to_the_image(side: int, kernel: int, sigma: float) -> None:
    image_CHW = torch.randn(3, side, side + 20, generator=torch.Generator().manual_seed(0))
    expected = gaussian_blur(image_CHW, [kernel, kernel], [sigma, sigma])
    torch.testing.assert_close(blurred(image_CHW), expected, atol=1e-5, rtol=0)


def test_progress_is_told_in_passes() -> None:
    steps: list[Step] = []
    forward = forward_of(Additive(np.ones((SIDE, SIDE))), np.ones((1, 3, SIDE, SIDE)), on_step=steps.append)
    perturbation_curves(forward, 0, np.arange(SIDE * SIDE), ["insertion", "deletion"], CurveProtocol(10))
    assert [(step.stage, step.done, step.total) for step in steps] == [("evaluate", n, 20) for n in (8, 16, 20)]


def test_the_end_without_any_pixel_of_the_image_is_scored_once_for_several_orders() -> None:
    steps: list[Step] = []
    forward = forward_of(
        Additive(np.arange(SIDE * SIDE, dtype=float).reshape(SIDE, SIDE)),
        np.random.default_rng(3).standard_normal((1, 3, SIDE, SIDE)),
        on_step=steps.append,
    )
    curves = ImageCurves(forward, 0, ["insertion", "deletion"], CurveProtocol(10))
    orders = [np.arange(SIDE * SIDE), np.random.default_rng(4).permutation(SIDE * SIDE)]
    found = [curves.of(order) for order in orders]
    assert [step.done for step in steps if step.done == step.total] == [20, 18]
    for order, by_kind in zip(orders, found, strict=True):
        alone = perturbation_curves(forward, 0, order, ["insertion", "deletion"], CurveProtocol(10))
        for kind, curve in by_kind.items():
            np.testing.assert_allclose(curve.logit_S, alone[kind].logit_S, atol=1e-5)


def test_an_accelerated_classifier_gives_the_network_s_curves(exported: GraphCache) -> None:
    network = classifier(small_network().float(), classes=2, crop=16, embedding_layer="4", gradcam_layer="0")
    graphs = open_graphs(
        [exported(network, "embedding")],
        weights_sha256=network.spec.weights_sha256,
        labels_sha256=labels_sha256(network.spec.labels),
        providers="cpu",
    )
    x_NCHW = np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)
    order = np.random.default_rng(6).permutation(256)
    by_torch, by_graph = (
        perturbation_curves(ForwardPass(each, x_NCHW), 1, order, ["insertion", "deletion"])
        for each in (network, replace(network, graphs=graphs))
    )
    for kind in by_torch:
        np.testing.assert_allclose(by_graph[kind].logit_S, by_torch[kind].logit_S, atol=1e-5)


@pytest.mark.parametrize("order", [np.arange(60), np.zeros(64, int)], ids=["too few", "repeated"])
def test_an_order_of_other_pixels_is_refused(order: Floats) -> None:
    forward = forward_of(Additive(np.ones((SIDE, SIDE))), np.ones((1, 3, SIDE, SIDE)))
    with pytest.raises(RequestError, match="the order must hold each of the 64 pixels once"):
        perturbation_curves(forward, 0, order, ["deletion"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, r"steps=1; use 2\.\.1000"),
        ({"steps": 1001}, r"steps=1001; use 2\.\.1000"),
        ({"insertion_substrate": "grey"}, "no insertion_substrate 'grey'; there are: blur, mean"),
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        CurveProtocol(**options)  # type: ignore[arg-type]


def test_a_network_without_classes_is_refused() -> None:
    plain = classifier(Additive(np.ones((SIDE, SIDE))), classes=2)
    spec = ModelSpec(**{**vars(plain.spec), "labels": ()})
    forward = ForwardPass(Classifier(plain.module, spec, plain.device, "test:net"), np.ones((1, 3, SIDE, SIDE)))
    with pytest.raises(UnsupportedModelError, match="evaluation explains a class"):
        perturbation_curves(forward, 0, np.arange(SIDE * SIDE), ["deletion"])


# --- the order of the pixels ------------------------------------------------------------------------------------------


def test_the_most_relevant_pixel_comes_first() -> None:
    assert pixel_order(np.array([[0.1, 0.4], [-3.0, 0.2]])).tolist() == [1, 3, 0, 2]


def test_equal_pixels_come_in_an_order_drawn_by_the_seed() -> None:
    map_HW = np.zeros((20, 20))
    map_HW[3, 4] = 1.0
    first, again, other = (pixel_order(map_HW, seed=seed) for seed in (0, 0, 1))
    assert first[0] == other[0] == 64
    assert first.tolist() == again.tolist() != other.tolist()
    rows = first[1:] // 20
    assert abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]) < 0.2  # not row by row


def test_relevance_is_the_signed_sum_or_the_largest_magnitude() -> None:
    values_CHW = np.array([[[1.0, -2.0]], [[-4.0, 1.0]]])
    assert relevance(values_CHW, "signed").tolist() == [[-3.0, -1.0]]
    assert relevance(values_CHW, "magnitude").tolist() == relevance(values_CHW, "gradient").tolist() == [[4.0, 2.0]]
