"""Gradient explanations as graphs: by hand, against the slow twin, against autograd in float64, and on a photograph."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import skimage.data
import torch
import twins
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from convlens import image
from convlens.errors import ModelError, RequestError, TargetError, UnsupportedModelError
from convlens.explain import ForwardPass
from convlens.models import Classifier, load
from convlens.runtime.contract import GRADIENTS, GradientKind
from convlens.runtime.onnx_ import OnnxRuntime
from export.__main__ import main
from export.bundle import Bundle
from export.gradients import RULES, Gradient, unrolled
from export.table import Row, markdown, rows
from export.write import export

SQUEEZENET = "torchvision:squeezenet1_1:untrained?size=64"


def small(module: nn.Module, *, classes: int = 3, crop: int = 12) -> Classifier:
    return nets.classifier(module.float(), classes=classes, crop=crop)


def graph_of(classifier: Classifier, kind: GradientKind, folder: Path, **options: Any) -> OnnxRuntime:
    return OnnxRuntime(export(classifier, kind, folder / f"{kind}.onnx", **options).path, providers="cpu")


def steps_of(module: nn.Module, kind: GradientKind, x_NCHW: Tensor, *, traced: int = 2) -> Any:
    """The explanation as forward steps, traced at so many pictures and left open for more."""
    inputs = torch.zeros(traced, *x_NCHW.shape[1:], dtype=x_NCHW.dtype), torch.zeros(traced, dtype=torch.int64)
    return unrolled(Gradient(module, RULES[kind]), inputs, open_batch=True)


def close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    # float32 sums in another order; of the largest value, since a gradient's zeros are sums that cancel
    assert nets.relative_error(found, torch.as_tensor(wanted).to(torch.as_tensor(found).dtype)) <= tolerance


# ---- by hand


def test_a_linear_nets_gradient_is_its_weights_row_by_row(tmp_path: Path) -> None:
    net = nets.Linear(4, 3)
    graph = graph_of(small(net, crop=4), "saliency", tmp_path)
    for count in (1, 2, 5, 17):
        x_NCHW, target_N = np.ones((count, 3, 4, 4), np.float32), np.arange(count) % 3
        gradient_NCHW, logits_NK = graph.gradient(x_NCHW, target_N)
        np.testing.assert_array_equal(gradient_NCHW, net.head.weight.detach().numpy()[target_N].reshape(-1, 3, 4, 4))
        np.testing.assert_allclose(logits_NK, net(torch.tensor(x_NCHW)).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    # a = 1, b = 2: u = 3, v and w are off. Logit 0 is u − v + 2w, and w = relu(−a) sends −2 to a where its switch is
    # ignored; v = relu(a − b) sends its −1 only where neither sign nor switch counts.
    [("saliency", (1.0, 1.0)), ("guided_backprop", (1.0, 1.0)), ("deconvnet", (-1.0, 1.0))],
)
def test_each_rule_added_up_by_hand(kind: GradientKind, expected: tuple[float, float]) -> None:
    x_NCHW = nets.pair(1.0, 2.0)
    gradient_NCHW, logits_NK = steps_of(nets.ByHand(F.relu).eval(), kind, x_NCHW)(x_NCHW, torch.tensor([0]))
    assert gradient_NCHW.flatten().tolist() == list(expected)
    assert logits_NK.tolist() == [[3.0, -3.0]]


# ---- every spelling of ReLU, against the slow twin


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("spelling", [*nets.RELUS, *nets.RELU6S])
def test_every_spelling_of_relu_obeys_the_rule(spelling: str, kind: GradientKind) -> None:
    def net(function: nets.Activation) -> nn.Module:
        return nets.seeded(lambda: nets.Sequential(nn.Sequential(nets.Call(lambda x: x * 4), nets.Call(function))))

    module, x_NCHW = net((nets.RELUS | nets.RELU6S)[spelling]), nets.pictures(3, 3, 8, 8)
    # one of the spellings asks for the number of pictures, which ties it
    found_NCHW, logits_NK = steps_of(module, kind, x_NCHW, traced=3)(x_NCHW, torch.tensor([2, 0, 1]))
    twin = twins.Twin(net(F.relu if spelling in nets.RELUS else F.relu6), x_NCHW)
    # float32 is what graphs give
    close(found_NCHW, twin.gradient(RULES[kind], [2, 0, 1]), 1e-6)
    close(logits_NK, twin.logits_NK, 1e-6)


@pytest.fixture(scope="module", params=GRADIENTS)
def ruled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    net = small(nets.seeded(nets.Mixed), classes=4)
    return graph_of(net, request.param, tmp_path_factory.mktemp("graphs"))


def test_a_net_with_every_difficulty_agrees_with_the_slow_twin_at_sizes_that_were_not_traced(
    ruled: OnnxRuntime,
) -> None:
    module, kind = nets.seeded(nets.Mixed), ruled.contract.kind
    assert kind in GRADIENTS
    for count in (1, 4, 9):
        x_NCHW = nets.pictures(count, 3, 12, 12, seed=count)
        target_N = [n % 4 for n in range(count)]
        found = ruled.run(x_NCHW.float(), np.array(target_N))  # all at once
        twin = twins.Twin(module, x_NCHW)
        close(found["gradient_NCHW"], twin.gradient(RULES[kind], target_N))
        close(found["logits_NK"], twin.logits_NK)


# ---- every layer that has a backward step of its own, against autograd


def conv(*args: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*args, **options)


LAYERS: dict[str, nn.Module] = {
    "convolution": conv(4, 6, 3, padding=1),
    "without padding": conv(4, 6, 3),
    "more padding than reach": conv(4, 6, 3, padding=4),
    "oblong": conv(4, 6, (1, 5), padding=(0, 2)),
    "dilated": conv(4, 6, 3, dilation=2, padding=2),
    "grouped": conv(4, 6, 3, groups=2, padding=1),
    "depthwise": conv(4, 4, 3, groups=4, padding=1),
    "depthwise with a multiplier": conv(4, 8, 3, groups=4, padding=1),
    "strided": conv(4, 6, 3, stride=2, padding=1),
    "strided, even window": conv(4, 6, 4, stride=2, padding=1),
    "strided, odd remainder": conv(4, 6, 5, stride=3, padding=1),
    "stride 4 under 11": conv(4, 6, 11, stride=4, padding=2),
    "strided, padding above stride": conv(4, 6, 7, stride=2, padding=3),
    "stride wider than the window": conv(4, 6, 2, stride=3),
    "strided, grouped": conv(4, 6, 3, stride=2, padding=1, groups=2),
    "strided, depthwise": conv(4, 4, 3, stride=2, padding=1, groups=4),
    "strided, dilated": conv(4, 6, 3, stride=2, dilation=2, padding=2),
    "uneven strides": conv(4, 6, 3, stride=(2, 1), padding=1),
    "pointwise, strided": conv(4, 6, 1, stride=2),
    "pointwise, strided, padded": conv(4, 6, 1, stride=3, padding=1),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "batch norm": nn.BatchNorm2d(4),
    "batch norm without weights": nn.BatchNorm2d(4, affine=False),
    "max pool": nn.MaxPool2d(2),
    "max pool, overlapping": nn.MaxPool2d(3, 2, padding=1),
    "max pool, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max pool, stride 1": nn.MaxPool2d(3, 1, padding=1),
    "max pool, dilated": nn.MaxPool2d(2, 2, dilation=2),
    "average pool": nn.AvgPool2d(2),
    "average pool, padded": nn.AvgPool2d(3, 2, padding=1),
    "average pool, padding not counted": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average pool, ceil": nn.AvgPool2d(3, 2, ceil_mode=True),
    "average pool, ceil and padded": nn.AvgPool2d((3, 2), 2, padding=1, ceil_mode=True),
    "average pool, divisor": nn.AvgPool2d(3, 1, divisor_override=2),
    "adaptive pool to the same size": nn.AdaptiveAvgPool2d(11),
    "adaptive pool, uneven": nn.AdaptiveAvgPool2d((4, 3)),
    "adaptive pool, larger": nn.AdaptiveAvgPool2d(16),
    "skip": nets.PreActivation(4),
    "squeeze and excite": nets.SqueezeExcite(4),
    "concatenation": nets.Call(lambda x: torch.cat([x, F.relu(x), x[:, 1:3]], dim=1)),
    "sigmoid": nn.Sigmoid(),
    "SiLU": nn.SiLU(),
    "Hardswish": nn.Hardswish(),
    "GELU": nn.GELU(),
}


# Their forward pass already comes out otherwise in ONNX: torch's exporter drops the divisor, and ONNX Runtime counts
# windows that begin in the padding.
NOT_IN_ONNX = {"average pool, divisor", "average pool, ceil and padded"}


class Branches(nn.Module):
    """All layers beside each other on the same picture, each on the way to logits of its own weighting."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(part) for name, part in LAYERS.items() if name not in NOT_IN_ONNX)
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Linear(len(self.layers), 3)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.first(x_NCHW)
        return self.head(torch.stack([spread(layer(x)) for layer in self.layers], dim=1))


def spread(x: Tensor) -> Tensor:
    """A different weight for each value, so that no two may be exchanged."""
    return (x.flatten(1) * torch.linspace(0.5, 1.5, x[0].numel(), dtype=x.dtype)).mean(1)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layers_backward_step_is_autograds(layer: str) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = copy.deepcopy(LAYERS[layer])
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return spread(self.layer(x_NCHW))[:, None] * self.weight

    module = nets.seeded(One)
    # whole numbers, so that windows of a pool hold their maximum more than once
    x_NCHW = (nets.pictures(3, 4, 11, 11) * 2).round()
    found_NCHW, _ = steps_of(module, "saliency", x_NCHW)(x_NCHW, torch.tensor([1, 0, 1]))
    close(found_NCHW, twins.plain_gradient(module, x_NCHW, [1, 0, 1]), 1e-6)


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, OnnxRuntime]:
    module = nets.seeded(Branches)
    net = small(copy.deepcopy(module), crop=11)
    return module, graph_of(net, "saliency", tmp_path_factory.mktemp("branches"))


@pytest.mark.parametrize("count", [1, 5])
def test_onnx_runtime_computes_every_such_step(branches: tuple[nn.Module, OnnxRuntime], count: int) -> None:
    module, graph = branches
    x_NCHW, target_N = nets.pictures(count, 3, 11, 11, seed=1), [n % 3 for n in range(count)]
    found = graph.run(x_NCHW.float(), np.array(target_N))
    close(found["gradient_NCHW"], twins.plain_gradient(module, x_NCHW, target_N))


def test_a_maximum_found_more_than_once_passes_its_gradient_to_the_first(tmp_path: Path) -> None:
    net = small(nets.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True)), crop=8)
    net.module.first.weight.data.zero_()  # every value is the bias: all are maxima
    net.module.first.bias.data.fill_(1.0)
    net.module.first.weight.data[:, :, 1, 1] = 1e-30  # lost in the sum, but not in the gradient
    graph = graph_of(net, "saliency", tmp_path)
    found_NCHW, _ = graph.gradient(np.ones((1, 3, 8, 8), np.float32), np.array([1]))
    rows, columns = np.nonzero(found_NCHW[0, 0])
    assert sorted(set(zip(rows.tolist(), columns.tolist(), strict=True))) == [
        (r, c) for r in (0, 2, 4, 6) for c in (0, 2, 4, 6)
    ]


# ---- batches


def pre_activation() -> Classifier:
    def net() -> nn.Module:
        return nets.Sequential(nn.Sequential(nets.PreActivation(8), nn.ReLU(), nn.MaxPool2d(2)), channels=8, classes=4)

    return small(nets.seeded(net), classes=4)


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    return graph_of(pre_activation(), "guided_backprop", tmp_path_factory.mktemp("graphs"))


def test_rows_do_not_influence_each_other(batched: OnnxRuntime) -> None:
    x_NCHW, target_N = nets.pictures(5, 3, 12, 12).float().numpy(), np.array([3, 1, 0, 2, 1])
    together = batched.run(x_NCHW, target_N)
    for n in range(5):
        alone_NCHW, alone_NK = batched.gradient(x_NCHW[n : n + 1], target_N[n : n + 1])
        close(together["gradient_NCHW"][n : n + 1], alone_NCHW)
        close(together["logits_NK"][n : n + 1], alone_NK)


def test_more_pictures_than_a_run_takes_keep_their_targets(batched: OnnxRuntime) -> None:
    x_NCHW, target_N = nets.pictures(20, 3, 12, 12).float().numpy(), np.arange(20) % 4
    found_NCHW, _ = batched.gradient(x_NCHW, target_N)
    backwards_NCHW, _ = batched.gradient(x_NCHW[::-1], target_N[::-1])
    close(found_NCHW, backwards_NCHW[::-1].copy())


def test_a_graph_bound_to_one_batch_size_answers_any_number(tmp_path: Path, batched: OnnxRuntime) -> None:
    bound = graph_of(pre_activation(), "guided_backprop", tmp_path, dynamic_batch=False, batch=4)
    assert bound.contract.batch == 4
    for count in (1, 4, 6):
        x_NCHW, target_N = nets.pictures(count, 3, 12, 12).float().numpy(), np.arange(count)[::-1] % 4
        found_NCHW, logits_NK = bound.gradient(x_NCHW, target_N)
        expected_NCHW, expected_NK = batched.gradient(x_NCHW, target_N)
        close(found_NCHW, expected_NCHW)
        close(logits_NK, expected_NK)


class Tied(nn.Module):
    """Looks at how many pictures there are, which ties its graph to one number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        scale = 2.0 if len(x_NCHW) == 2 else 1.0 if len(x_NCHW) == 5 else 0.0
        return self.head(self.first(x_NCHW).relu().mean((2, 3))) * scale


def test_where_the_batch_cannot_stay_open_the_graph_is_bound_and_says_so(tmp_path: Path) -> None:
    report = export(small(nets.seeded(Tied)), "saliency", tmp_path / "tied.onnx", batch=5)
    assert report.contract.batch == 5
    assert [port.shape[0] for port in (*report.contract.inputs, *report.contract.outputs)] == [5, 5, 5, 5]


# ---- what a graph says and takes


def test_the_contract_names_two_inputs_and_two_outputs(batched: OnnxRuntime) -> None:
    ports = {port.name: (port.shape, port.dtype) for port in (*batched.contract.inputs, *batched.contract.outputs)}
    assert batched.contract.kind == "guided_backprop"
    assert ports == {
        "x_NCHW": (("N", 3, 12, 12), "float32"),
        "target_N": (("N",), "int64"),
        "gradient_NCHW": (("N", 3, 12, 12), "float32"),
        "logits_NK": (("N", 4), "float32"),
    }


def test_with_preprocessing_the_gradient_is_still_by_the_normalised_picture(tmp_path: Path) -> None:
    net = nets.Linear(4, 3)
    graph = graph_of(small(net, crop=4), "saliency", tmp_path, preprocessing=True)
    picture_NHWC = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    gradient_NCHW, logits_NK = graph.gradient(picture_NHWC, np.array([2, 0, 1]))
    close(gradient_NCHW, net.head.weight.detach()[[2, 0, 1]].reshape(3, 3, 4, 4))
    x_NCHW = torch.tensor(picture_NHWC).permute(0, 3, 1, 2) / 255.0
    close(logits_NK, net((x_NCHW - 0.5) / 0.25).detach())


@pytest.mark.parametrize("opset", [18, 23])
def test_any_opset_will_do(tmp_path: Path, opset: int) -> None:
    module = nets.seeded(lambda: nets.Sequential(nn.Sequential(nn.MaxPool2d(2), nn.ReLU6())))
    graph = graph_of(small(copy.deepcopy(module)), "saliency", tmp_path, opset=opset)
    x_NCHW = nets.pictures(3, 3, 12, 12)
    found_NCHW, _ = graph.gradient(x_NCHW.float(), np.array([0, 1, 2]))
    close(found_NCHW, twins.plain_gradient(module, x_NCHW, [0, 1, 2]))


def test_a_class_that_there_is_not_is_refused(batched: OnnxRuntime) -> None:
    x_NCHW = np.zeros((2, 3, 12, 12), np.float32)
    for target_N in ([0, 4], [-1, 0]):
        with pytest.raises(TargetError, match=r"0\.\.3"):
            batched.gradient(x_NCHW, np.array(target_N))
    for wrong in (np.array([0]), np.array([0.0, 1.0]), np.array([[0, 1]])):
        with pytest.raises(TargetError, match="2 pictures need as many integer targets"):
            batched.gradient(x_NCHW, wrong)


def test_only_graphs_of_gradients_give_one(tmp_path: Path) -> None:
    net = small(nets.Linear(4, 3), crop=4)
    scores = OnnxRuntime(export(net, "scores", tmp_path / "scores.onnx").path)
    with pytest.raises(ModelError, match=r"'saliency' or 'guided_backprop' or 'deconvnet'.* of kind 'scores'"):
        scores.gradient(np.zeros((1, 3, 4, 4), np.float32), np.array([0]))


# ---- what is refused


@pytest.mark.parametrize("kind", ["guided_backprop", "deconvnet"])
@pytest.mark.parametrize(("activation", "said"), [(nn.SiLU(), "uses SiLU"), (nn.Identity(), "calls none")])
def test_networks_that_a_rule_is_not_defined_for_are_refused(
    tmp_path: Path, kind: GradientKind, activation: nn.Module, said: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{kind} .*{said}"):
        export(small(nets.Sequential(activation)), kind, tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []


def test_half_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="half=True would move ReLUs of a graph of saliency across zero"):
        export(small(nets.Sequential(nn.ReLU())), "saliency", tmp_path / "graph.onnx", half=True)


class Chancy(nn.Module):
    """Decides by its input's values, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features = self.first(x_NCHW).mean((2, 3))
        return self.head(features if features.sum() > 0 else -features)


def test_a_network_that_decides_by_values_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="gradient cannot be written as a graph"):
        export(small(Chancy()), "saliency", tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []


class Liar(nn.Module):
    """Says something else while its gradient is traced, to logits or to pixels: what a wrong step would look like."""

    def __init__(self, logits: float = 1.0, corner: float = 1.0) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.logits, self.corner = logits, corner

    def forward(self, x_NCHW: Tensor) -> Tensor:
        traced = isinstance(x_NCHW, FakeTensor)
        if traced and self.corner != 1:
            scale_HW = torch.ones(x_NCHW.shape[2:])
            scale_HW[:2, :2] = self.corner
            x_NCHW = x_NCHW * scale_HW - (x_NCHW * (scale_HW - 1)).detach()
        logits_NK = self.head(self.first(x_NCHW).relu().mean((2, 3)))
        return logits_NK * self.logits if traced else logits_NK


def test_a_disagreement_keeps_the_draft_and_says_by_how_much(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gradient_NCHW off by 1\.00e-02 for 1 pictures.*kept at"):
        export(small(nets.seeded(lambda: Liar(logits=1.01))), "saliency", tmp_path / "graph.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["graph.draft.onnx"]


def test_a_gradient_that_is_wrong_in_one_corner_only_is_a_disagreement(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gradient_NCHW off by"):
        export(small(nets.seeded(lambda: Liar(corner=1.5))), "saliency", tmp_path / "graph.onnx")


# ---- real networks


@pytest.mark.parametrize("kind", ["saliency", "guided_backprop"])
def test_the_default_model_on_a_photograph_agrees_with_the_eager_explanation(
    default_bundle: Bundle, kind: GradientKind
) -> None:
    net = load(device="cpu")
    (report,) = (one for one in default_bundle.reports if one.contract.kind == kind)
    assert report.worst.relative <= 1e-4
    assert {(one.output, one.pictures) for one in report.deviations} == {
        (output, count) for output in ("gradient_NCHW", "logits_NK") for count in (1, 3, 8)
    }
    x_CHW = image.prepare(Image.fromarray(skimage.data.chelsea()), net.spec).x_CHW
    found_NCHW, logits_NK = OnnxRuntime(report.path).gradient(x_CHW[None], np.array([282]))
    assert net.spec.labels[logits_NK.argmax()] == "tiger cat"
    double = dataclasses.replace(net, module=copy.deepcopy(net.module).double())
    forward = ForwardPass(double, x_CHW[None].astype(np.float64))
    expected_NCHW = forward.gradient(RULES[kind], np.array([282]), method=kind).numpy()
    off = np.abs(found_NCHW - expected_NCHW) / np.abs(expected_NCHW).max()
    assert np.quantile(off, 0.9) <= 1e-4  # a ReLU within rounding of zero moves the pixels before it


def test_the_command_writes_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.onnx"
    assert main(["saliency", "--model", SQUEEZENET, "-o", str(path)]) == 0
    assert "agrees with torch within" in capsys.readouterr().out
    assert OnnxRuntime(path).contract.kind == "saliency"


def test_what_has_no_definition_is_no_failure_of_the_table(tmp_path: Path) -> None:
    found = rows(["torchvision:efficientnet_b0:untrained?size=32"], ["guided_backprop"])
    assert [(row.worst, row.refused) for row in found] == [(None, True)]
    table = [*found, Row(found[0].model, "scores", None, 0.0, "why")]
    assert markdown(table).splitlines()[2] == f"| {found[0].model} | refused | failed |"
