"""Gradient explanations as graphs: by hand, against the slow twin, and on a photograph."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import nets
import numpy as np
import pytest
import reference_gradients
import skimage.data
import small_lecture_network
import torch
from gradient_graphs import close, graph_of, small, steps_of
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from convlens import image
from convlens.errors import ModelError, RequestError, TargetError, UnsupportedModelError
from convlens.explain import ForwardPass
from convlens.models import Classifier, load
from convlens.runtime.graph_contract import GRADIENTS, GradientKind
from convlens.runtime.onnx_runtime import OnnxRuntime
from export.__main__ import main
from export.bundle import Bundle
from export.compatibility import Row, compare_families, markdown
from export.exporter import export
from export.gradients.tracing import RULES

NETWORK = f"file:{small_lecture_network.__file__}:make?size=64&resize=64"


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
    twin = reference_gradients.ReferenceNetwork(net(F.relu if spelling in nets.RELUS else F.relu6), x_NCHW)
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
        twin = reference_gradients.ReferenceNetwork(module, x_NCHW)
        close(found["gradient_NCHW"], twin.gradient(RULES[kind], target_N))
        close(found["logits_NK"], twin.logits_NK)


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
    close(found_NCHW, reference_gradients.plain_gradient(module, x_NCHW, [0, 1, 2]))


def test_a_class_that_there_is_not_is_refused(batched: OnnxRuntime) -> None:
    x_NCHW = np.zeros((2, 3, 12, 12), np.float32)
    for target_N in ([0, 4], [-1, 0]):
        with pytest.raises(TargetError, match=r"0\.\.3"):
            batched.gradient(x_NCHW, np.array(target_N))
    for wrong in (np.array([0]), np.array([0.0, 1.0]), np.array([[0, 1]])):
        with pytest.raises(TargetError, match="2 images need as many integer targets"):
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
    with pytest.raises(ModelError, match=r"gradient_NCHW off by 1\.00e-02 at batch 1.*kept at"):
        export(small(nets.seeded(lambda: Liar(logits=1.01))), "saliency", tmp_path / "graph.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["graph.draft.onnx"]


def test_a_gradient_that_is_wrong_in_one_corner_only_is_a_disagreement(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gradient_NCHW off by"):
        export(small(nets.seeded(lambda: Liar(corner=1.5))), "saliency", tmp_path / "graph.onnx")


# ---- real networks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["saliency", "guided_backprop"])
def test_the_default_model_on_a_photograph_agrees_with_the_eager_explanation(
    default_bundle: Bundle, kind: GradientKind
) -> None:
    net = load(device="cpu")
    (report,) = (one for one in default_bundle.reports if one.contract.kind == kind)
    assert report.worst.relative <= 1e-4
    assert {(one.output, one.batch) for one in report.deviations} == {
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


@pytest.mark.slow
def test_the_command_writes_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.onnx"
    assert main(["saliency", "--model", NETWORK, "-o", str(path)]) == 0
    assert "agrees with torch within" in capsys.readouterr().out
    assert OnnxRuntime(path).contract.kind == "saliency"


def test_what_has_no_definition_is_no_failure_of_the_table(tmp_path: Path) -> None:
    found = compare_families(["torchvision:efficientnet_b0:untrained?size=32"], ["guided_backprop"])
    assert [(row.worst, row.refused) for row in found] == [(None, True)]
    table = [*found, Row(found[0].model, "scores", None, 0.0, "why")]
    assert markdown(table).splitlines()[2] == f"| {found[0].model} | refused | failed |"
