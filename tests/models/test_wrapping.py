"""Modules in memory as classifiers: heads of every kind, each against plain torch, and the module left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convlens
from convlens.engine.rendering import top_predictions
from convlens.errors import ModelError, TargetError, UnsupportedModelError
from convlens.explain import ForwardPass, run
from convlens.models import Classifier, pack, wrap
from convlens.types import Attribution

SIDE = 16


def body(channels: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
    ]


def net(classes: int, *end: nn.Module, channels: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(*body(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes), *end)
    module[1].running_mean.uniform_(-0.5, 0.5)
    module[1].running_var.uniform_(0.5, 2.0)
    return module.eval()


def images(count: int, channels: int = 3, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(count, channels, *size)).astype(np.float32)


def wrapped(module: nn.Module, **options: Any) -> Classifier:
    return wrap(module, **({"size": SIDE} | options))


def plain(module: nn.Module, x_NCHW: np.ndarray, score: Callable[[Any], Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) that ``score`` reads off the module's output, and their gradient by the images."""
    x = torch.tensor(x_NCHW, requires_grad=True)
    score_N = score(module(x))
    (gradient,) = torch.autograd.grad(score_N.sum(), x)
    return score_N.detach().numpy(), gradient.numpy()


def dropped(module: nn.Module, x_NCHW: np.ndarray, score: Callable[[Any], Tensor], window: int) -> np.ndarray:
    """What the score loses with each window, side by side, at 0: a loop over windows."""
    with torch.no_grad():
        clean_N = score(module(torch.tensor(x_NCHW))).numpy()
        rows, columns = (x_NCHW.shape[axis] // window for axis in (2, 3))
        grid_NRQ = np.zeros((len(x_NCHW), rows, columns), np.float32)
        for row in range(rows):
            for column in range(columns):
                hidden = x_NCHW.copy()
                hidden[:, :, row * window : (row + 1) * window, column * window : (column + 1) * window] = 0
                grid_NRQ[:, row, column] = clean_N - score(module(torch.tensor(hidden))).numpy()
    return grid_NRQ


def explained(classifier: Classifier, x_NCHW: np.ndarray, method: str, target: int, **options: Any) -> Attribution:
    result = run(method, ForwardPass(classifier, x_NCHW), [target] * len(x_NCHW), options)
    assert isinstance(result, Attribution)
    return result


def require_like_plain_torch(
    classifier: Classifier, module: nn.Module, x_NCHW: np.ndarray, target: int, score: Callable[[Any], Tensor]
) -> None:
    """Score, saliency and occlusion of one class; ``score`` is that class's logit, off the module's output."""
    score_N, gradient = plain(module, x_NCHW, score)
    saliency = explained(classifier, x_NCHW, "saliency", target)
    np.testing.assert_allclose(saliency.score_N, score_N, atol=1e-6)
    np.testing.assert_allclose(saliency.values_NCHW, gradient, atol=1e-6)
    occlusion = explained(classifier, x_NCHW, "occlusion", target, window=8, stride=8)
    np.testing.assert_allclose(occlusion.extras["grid_NRQ"], dropped(module, x_NCHW, score, 8), atol=1e-6)


# ---- one line, and nothing of the module changed


def test_one_line_makes_a_classifier_of_a_module_in_memory() -> None:
    module, x_NCHW = net(5), images(2)
    classifier = convlens.wrap(module, size=SIDE)
    assert (classifier.spec.activation, classifier.spec.classes, classifier.spec.head) == ("softmax", 5, ())
    assert (classifier.spec.embedding_layer, classifier.spec.gradcam_layer, classifier.spec.first_convolution) == (
        "8",
        "5",
        "0",
    )
    require_like_plain_torch(classifier, module, x_NCHW, 3, lambda out: out[:, 3])


def test_wrapping_and_explaining_leave_the_module_as_it_was() -> None:
    module = net(5).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    classifier = wrapped(module)
    for method in ("saliency", "guided_backprop", "grad_cam", "occlusion"):
        explained(classifier, images(2), method, 1)
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_weights_are_shared_and_not_copied() -> None:
    module = net(5)
    classifier = wrapped(module)
    assert classifier.module.get_submodule("8").weight.data_ptr() == module[8].weight.data_ptr()


# ---- heads


def test_one_logit_is_class_one_against_class_zero() -> None:
    module, x_NCHW = net(1), images(3)
    classifier = wrapped(module, labels=["pneumonia"])
    assert (classifier.spec.labels, classifier.spec.activation) == (("not pneumonia", "pneumonia"), "sigmoid")
    require_like_plain_torch(classifier, module, x_NCHW, 1, lambda out: out[:, 0])
    require_like_plain_torch(classifier, module, x_NCHW, 0, lambda out: -out[:, 0])
    with torch.no_grad():
        expected_N = torch.sigmoid(module(torch.tensor(x_NCHW)))[:, 0].numpy()
    for n in range(3):
        given = {p.label: p.probability for p in top_predictions(ForwardPass(classifier, x_NCHW[n : n + 1]), 2)}
        np.testing.assert_allclose(given["pneumonia"], expected_N[n], atol=1e-6)
        np.testing.assert_allclose(given["not pneumonia"], 1 - expected_N[n], atol=1e-6)


class Squeezed(nn.Module):
    """One logit an image, without an axis of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net(1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.inner(x_NCHW).squeeze(1)


def test_one_logit_may_come_without_an_axis_of_classes() -> None:
    module = Squeezed()
    require_like_plain_torch(wrapped(module), module, images(2), 1, lambda out: out)


class Ending(nn.Module):
    """A network that ends in a function."""

    def __init__(self, inner: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self._function = inner, function

    def forward(self, x_NCHW: Tensor) -> Any:
        return self._function(self.inner(x_NCHW))


ENDINGS = {
    "nn.Sigmoid": (lambda: net(4, nn.Sigmoid()), "sigmoid"),
    "torch.sigmoid": (lambda: Ending(net(4), torch.sigmoid), "sigmoid"),
    "a method": (lambda: Ending(net(4), lambda out: out.sigmoid()), "sigmoid"),
    "nn.Softmax": (lambda: net(4, nn.Softmax(1)), "softmax"),
    "F.softmax": (lambda: Ending(net(4), lambda out: F.softmax(out, dim=1)), "softmax"),
    "nn.LogSoftmax": (lambda: net(4, nn.LogSoftmax(1)), "softmax"),
    "F.log_softmax": (lambda: Ending(net(4), lambda out: F.log_softmax(out, -1)), "softmax"),
    "within a dict": (lambda: Ending(net(4), lambda out: {"logits": out.sigmoid(), "loss": None}), "sigmoid"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_activation_at_the_end_is_found_and_logits_are_explained(ending: str) -> None:
    make, activation = ENDINGS[ending]
    classifier = wrapped(make())
    assert classifier.spec.activation == activation
    # The same seed: the same network without the activation.
    require_like_plain_torch(classifier, net(4), images(2), 2, lambda out: out[:, 2])


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_probabilities_of_labels_that_exclude_nothing_are_sigmoids(score: str) -> None:
    module, x_NCHW = net(4), images(2)
    classifier = wrapped(net(4, nn.Sigmoid()))
    probability = {"logit": lambda out: out[:, 2], "probability": lambda out: out.sigmoid()[:, 2]}[score]
    _, gradient = plain(module, x_NCHW, probability)
    np.testing.assert_allclose(
        explained(classifier, x_NCHW, "saliency", 2, score=score).values_NCHW, gradient, atol=1e-6
    )
    occlusion = explained(classifier, x_NCHW, "occlusion", 2, window=8, stride=8, score=score)
    np.testing.assert_allclose(occlusion.extras["grid_NRQ"], dropped(module, x_NCHW, probability, 8), atol=1e-6)
    with torch.no_grad():
        expected_K = module(torch.tensor(x_NCHW[:1])).sigmoid()[0].numpy()
    given = {p.index: p.probability for p in top_predictions(ForwardPass(classifier, x_NCHW[:1]), 4)}
    np.testing.assert_allclose([given[k] for k in range(4)], expected_K, atol=1e-6)


def test_an_activation_may_be_given_for_what_the_network_leaves_to_its_loss() -> None:
    classifier = wrapped(net(4), activation="sigmoid")
    assert (classifier.spec.activation, classifier.spec.head) == ("sigmoid", ())
    predictions = top_predictions(ForwardPass(classifier, images(1)), 4)
    with torch.no_grad():
        expected_K = net(4)(torch.tensor(images(1))).sigmoid()[0].numpy()
    np.testing.assert_allclose([p.probability for p in predictions], np.sort(expected_K)[::-1], atol=1e-6)


class TwoHeads(nn.Module):
    """Two groups of classes, each with its own probabilities."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self._function = net(3), net(2), function

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([self._function(self.first(x_NCHW)), self._function(self.second(x_NCHW))], 1)


@pytest.mark.parametrize("function", [torch.sigmoid, lambda out: out.softmax(1)], ids=["sigmoid", "softmax"])
def test_probabilities_of_several_heads_side_by_side_are_not_taken_for_logits(
    function: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(ModelError, match=r"probabilities already.*activation='none'"):
        wrapped(TwoHeads(function))
    assert wrapped(TwoHeads(function), activation="none").spec.classes == 5
    assert wrapped(TwoHeads(lambda out: out)).spec.activation == "softmax"


def test_a_sigmoid_that_is_scaled_in_its_own_memory_is_no_sigmoid_at_the_end() -> None:
    module, x_NCHW = Ending(net(4), lambda out: out.sigmoid().mul_(5)), images(2)  # no gradient passes it
    classifier = wrapped(module)
    assert classifier.spec.head == ()
    with torch.no_grad():
        expected_NK = module(torch.tensor(x_NCHW)).numpy()
    np.testing.assert_allclose(ForwardPass(classifier, x_NCHW).logits_NK, expected_NK, atol=1e-6)


def test_without_an_activation_outputs_are_shown_and_explained_as_they_are() -> None:
    module = net(4, nn.Softmax(1))
    classifier = wrapped(module, activation="none")
    require_like_plain_torch(classifier, module, images(2), 1, lambda out: out[:, 1])
    predictions = top_predictions(ForwardPass(classifier, images(1)), 4)
    np.testing.assert_allclose([p.probability for p in predictions], [p.logit for p in predictions], atol=1e-12)


@dataclass
class Output:
    loss: Any
    logits: Tensor


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], dict[str, Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda out: {"logits": out, "aux": None}, {}, lambda given: given["logits"]),
    "dict, named": (lambda out: {"a": out * 2, "b": out}, {"output": "a"}, lambda given: given["a"]),
    "tuple of one vector": (lambda out: (out, out[:, None, :, None].expand(-1, 2, -1, 5)), {}, lambda given: given[0]),
    "tuple, numbered": (lambda out: (out, out * 3), {"output": 1}, lambda given: given[1]),
    "list": (lambda out: [out], {}, lambda given: given[0]),
    "dataclass": (lambda out: Output(None, out), {}, lambda given: given.logits),
    "1×1 maps": (lambda out: out[:, :, None, None], {}, lambda given: given[:, :, 0, 0]),
    "bfloat16": (lambda out: out.bfloat16(), {}, lambda given: given.float()),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_logits_are_found_in_what_the_network_returns(container: str) -> None:
    end, options, logits = CONTAINERS[container]
    module = Ending(net(4), end)
    require_like_plain_torch(wrapped(module, **options), module, images(2), 2, lambda out: logits(out)[:, 2])


def test_of_several_outputs_the_one_meant_must_be_named() -> None:
    module = Ending(net(4), lambda out: (out, out * 3))
    with pytest.raises(ModelError, match=r"which of it are the logits is not clear.*output="):
        wrapped(module)
    with pytest.raises(ModelError, match="returns no 2; there are: 0, 1"):
        wrapped(module, output=2)


class Cosine(nn.Module):
    """Logits as ArcFace computes them: cosines of the angles between embedding and class centres, times a scale."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(*body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        self.norm = nn.BatchNorm1d(5)
        self.centres = nn.Parameter(torch.randn(classes, 5))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        embedding_ND = F.normalize(self.norm(self.trunk(x_NCHW)))
        return 30 * F.linear(embedding_ND, F.normalize(self.centres))


def test_a_head_of_cosines_has_the_vector_before_it_for_an_embedding() -> None:
    module, x_NCHW = Cosine(7).eval(), images(2)
    classifier = wrapped(module)
    assert classifier.spec.embedding_layer == "norm:output"
    with torch.no_grad():
        expected_ND = module.norm(module.trunk(torch.tensor(x_NCHW))).numpy()
    np.testing.assert_allclose(ForwardPass(classifier, x_NCHW).embedding_ND, expected_ND, atol=1e-6)
    score_N, gradient = plain(module, x_NCHW, lambda out: out[:, 6])
    saliency = explained(classifier, x_NCHW, "saliency", 6)
    np.testing.assert_allclose(saliency.score_N, score_N, rtol=1e-5)
    np.testing.assert_allclose(saliency.values_NCHW, gradient, atol=1e-5)


# ---- networks without classes


def features(end: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *([end] if end else [])).eval()


def test_a_network_whose_classifier_was_taken_off_has_no_classes_but_an_embedding() -> None:
    module, x_NCHW = features(nn.Identity()), images(2)
    classifier = wrapped(module)
    forward = ForwardPass(classifier, x_NCHW)
    assert (classifier.spec.classes, classifier.spec.embedding_layer) == (0, ":output")
    assert top_predictions(forward, 5) == ()
    with torch.no_grad():
        np.testing.assert_allclose(forward.embedding_ND, module(torch.tensor(x_NCHW)).numpy(), atol=1e-6)


def test_occlusion_of_an_embedding_is_by_its_similarity_to_itself() -> None:
    module, x_NCHW = features(nn.Identity()), images(2)
    with torch.no_grad():
        own_ND = module(torch.tensor(x_NCHW))
    result = run("occlusion", ForwardPass(wrapped(module), x_NCHW), None, {"window": 8, "stride": 8})
    assert isinstance(result, Attribution)
    expected = dropped(module, x_NCHW, lambda out: F.cosine_similarity(out, own_ND), 8)
    np.testing.assert_allclose(result.extras["grid_NRQ"], expected, atol=1e-6)
    np.testing.assert_allclose(result.score_N, 1.0)


def test_methods_and_targets_that_need_a_class_are_refused_where_there_is_none() -> None:
    forward = ForwardPass(wrapped(features(nn.Identity())), images(1))
    for method in ("saliency", "guided_backprop", "grad_cam", "rise", "score_cam"):
        with pytest.raises(UnsupportedModelError, match="gives embeddings and has none; use occlusion"):
            run(method, forward)
    with pytest.raises(TargetError, match="has no classes; leave target out"):
        run("occlusion", forward, [0], {"window": 8, "stride": 8})


def test_an_embedding_may_be_said_to_be_one_and_then_takes_no_labels() -> None:
    assert wrapped(net(4), features=True).spec.classes == 0
    assert wrapped(features(), features=True).spec.embedding_layer == ":output"
    with pytest.raises(ModelError, match="that gives embeddings has none"):
        wrapped(net(4), features=True, labels=["a", "b", "c", "d"])


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "dla34", "resnetv2_50"])
def test_timms_networks_are_told_from_those_without_a_classifier(name: str) -> None:
    timm = pytest.importorskip("timm")
    with_classes, without = (timm.create_model(name, num_classes=classes) for classes in (11, 0))
    assert wrap(with_classes, size=64).spec.classes == 11
    assert wrap(without, size=64).spec.classes == 0


# ---- what the answer depends on


class Dropping(nn.Module):
    """Dropout that goes on in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Sequential(*body()), nn.Linear(8, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(F.dropout(self.first(x_NCHW).mean((2, 3)), 0.5))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.noise, self.inner = nn.Identity(), net(3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.inner(self.noise(x_NCHW) + 0.1 * torch.randn_like(x_NCHW))


def without_statistics() -> nn.Sequential:
    module = net(3)
    module[1] = nn.BatchNorm2d(6, track_running_stats=False)
    return module.eval()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Dropping, r"other answers each time; the first that differs is head \(Linear\), behind first\.5.*F\.dropout"),
        (Noisy, r"other answers each time; the first that differs is inner\.0 \(Conv2d\), behind noise"),
        (
            without_statistics,
            r"shares its batch with another; the first that differs is 1 \(BatchNorm2d\).*track_running",
        ),
    ],
)
def test_a_network_whose_answer_is_no_function_of_the_image_is_refused_with_the_layer(
    make: Callable[[], nn.Module], told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        wrapped(make().eval())


def test_it_may_be_allowed_and_then_every_result_bears_a_warning() -> None:
    classifier = wrapped(Dropping().eval(), unrepeatable="allow")
    for method in ("saliency", "occlusion", "grad_cam"):
        options = {"window": 8, "stride": 8} if method == "occlusion" else {}
        (warning,) = explained(classifier, images(1), method, 0, **options).meta.warnings
        assert "answers depend on chance" in warning
    assert "other images of a batch" in wrapped(without_statistics(), unrepeatable="allow").spec.warnings[0]


def test_an_unknown_word_for_it_is_refused() -> None:
    with pytest.raises(ModelError, match="unrepeatable='Allow' is not known; there are: refuse, allow"):
        wrapped(net(3), unrepeatable="Allow")


# ---- modules around the network, other widths, other channels


def test_networks_are_taken_out_of_what_is_around_them() -> None:
    module, x_NCHW = net(4), images(2)
    around = {
        "DataParallel": nn.DataParallel(module),
        "compiled": torch.compile(module),
        "average": torch.optim.swa_utils.AveragedModel(module).eval(),
        "both": torch.compile(nn.DataParallel(module)),
    }
    for outer in around.values():
        classifier = wrapped(outer)
        assert classifier.spec.embedding_layer == "8"
        require_like_plain_torch(classifier, module, x_NCHW, 2, lambda out: out[:, 2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_widths_are_computed_in_float32(dtype: torch.dtype) -> None:
    module = net(4).to(dtype)
    expected = copy.deepcopy(module).float()
    require_like_plain_torch(wrapped(module), expected, images(2), 2, lambda out: out[:, 2])
    assert next(module.parameters()).dtype == dtype


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net(4)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x_NCHW)


def test_a_network_may_lower_its_precision_by_itself() -> None:
    module, x_NCHW = Autocast().eval(), images(1)
    classifier = wrapped(module)
    score_N, gradient = plain(module, x_NCHW, lambda out: out[:, 2].float())
    saliency = explained(classifier, x_NCHW, "saliency", 2)
    np.testing.assert_allclose(saliency.score_N, score_N, atol=1e-6)
    np.testing.assert_allclose(saliency.values_NCHW, gradient, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels_with_mean_and_std_of_each(channels: int) -> None:
    module = net(3, channels=channels)
    with pytest.raises(ModelError, match=f"takes {channels} channels; give mean= and std="):
        wrapped(module)
    with pytest.raises(ModelError, match=f"takes {channels} channels; give mean= and std="):
        wrapped(module, mean=[], std=[])
    classifier = wrapped(module, mean=[0.5] * channels, std=[0.2] * channels)
    require_like_plain_torch(classifier, module, images(2, channels), 1, lambda out: out[:, 1])


def test_three_channels_are_rgb_although_the_first_convolution_takes_others() -> None:
    module = nn.Sequential(nn.PixelUnshuffle(2), *net(3, channels=12)).eval()
    assert wrapped(module).spec.mean == (0.485, 0.456, 0.406)
    require_like_plain_torch(wrapped(module), module, images(2), 1, lambda out: out[:, 1])


def test_rectangles() -> None:
    module, x_NCHW = net(3), images(2, size=(16, 24))
    classifier = wrapped(module, size=(16, 24))
    assert classifier.spec.input_size == (16, 24)
    require_like_plain_torch(classifier, module, x_NCHW, 1, lambda out: out[:, 1])


def test_a_head_of_21841_classes() -> None:
    module = net(21841)
    require_like_plain_torch(wrapped(module), module, images(1), 21840, lambda out: out[:, 21840])


def test_what_was_wrapped_in_memory_is_not_packed_and_the_error_says_what_to_do(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=r"write a function.*load file:PATH\.py:FUNCTION.*or pack its graphs"):
        pack(wrapped(net(3)), tmp_path / "packed")
    assert not (tmp_path / "packed" / "model.json").exists()
