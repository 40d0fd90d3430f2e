"""Graphs of a layer's maps and their gradient: by hand, against autograd, and what the CAM family makes of them."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import small_lecture_network
import torch
from gradient_graphs import close, graph_of, small
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

import convlens
from convlens.errors import ModelError, RequestError, TargetError, UnsupportedModelError
from convlens.explain import ForwardPass, GraphForward, GraphModel, run
from convlens.models import Classifier, load
from convlens.runtime.onnx_runtime import OnnxRuntime
from export.__main__ import main
from export.bundle import bundle
from export.compatibility import compare_families
from export.exporter import export
from export.gradients.tracing import MapsGradient, unroll

FAMILY = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus")
NETWORK = f"file:{small_lecture_network.__file__}:make?size=64&resize=64"


def mixed() -> Classifier:
    return nets.classifier(nets.seeded(nets.Mixed).float(), classes=4, crop=12, gradcam_layer="third")


def pictures(count: int, side: int = 12) -> np.ndarray:
    return nets.pictures(count, 3, side, side, seed=count).float().numpy()


def by_autograd(module: nn.Module, layer: str, x_NCHW: np.ndarray, target_N: Any, run: int = -1) -> tuple[Any, Any]:
    """The layer's maps and the gradient of each row's logit in them, in float64, by a hook that keeps every run's."""
    module, caught = copy.deepcopy(module).double(), []

    def keep(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        caught.append(out)
        return out.clone()  # an in-place step that follows may not overwrite what is kept

    module.get_submodule(layer).register_forward_hook(keep)
    logits_NK = module(torch.tensor(x_NCHW, dtype=torch.float64).requires_grad_())
    score = sum(row[target] for row, target in zip(logits_NK, target_N, strict=True))
    (gradient_NCHW,) = torch.autograd.grad(score, caught[run])
    return caught[run].detach(), gradient_NCHW


# ---- by hand


class RedAndGreen(nn.Module):
    """Two maps, the red channel and the green one turned round, and a weight for each of their cells."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 1, bias=False)
        self.first.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]).reshape(2, 3, 1, 1)
        self.head = nn.Linear(8, 3, bias=False)
        self.head.weight.data = torch.arange(24.0).reshape(3, 8)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).flatten(1))


@pytest.fixture(scope="module")
def red_and_green(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    return graph_of(small(RedAndGreen(), crop=2), "cam", tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_a_linear_head_s_gradient_is_its_weights_row_by_row(red_and_green: OnnxRuntime, count: int) -> None:
    x_NCHW, target_N = pictures(count, 2), np.arange(count) % 3
    maps_NCHW, gradient_NCHW = red_and_green.maps_and_gradient(x_NCHW, target_N)
    np.testing.assert_array_equal(maps_NCHW, np.stack([x_NCHW[:, 0], -x_NCHW[:, 1]], axis=1))
    np.testing.assert_array_equal(gradient_NCHW, np.arange(24).reshape(3, 2, 2, 2)[target_N])


def test_the_contract_names_the_layer_two_inputs_and_three_outputs(red_and_green: OnnxRuntime) -> None:
    contract = red_and_green.contract
    assert (contract.kind, contract.layers) == ("cam", ("first",))
    assert {port.name: (port.shape, port.dtype) for port in (*contract.inputs, *contract.outputs)} == {
        "x_NCHW": (("N", 3, 2, 2), "float32"),
        "target_N": (("N",), "int64"),
        "maps_NCHW": (("N", 2, 2, 2), "float32"),
        "maps_gradient_NCHW": (("N", 2, 2, 2), "float32"),
        "logits_NK": (("N", 3), "float32"),
    }


def test_with_preprocessing_the_maps_are_of_the_normalised_picture(tmp_path: Path) -> None:
    graph = graph_of(small(RedAndGreen(), crop=2), "cam", tmp_path, preprocessing=True)
    picture_NHWC = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), dtype=np.uint8)
    maps_NCHW, gradient_NCHW = graph.maps_and_gradient(picture_NHWC, np.array([2, 0, 1]))
    x_NHWC = (picture_NHWC / 255 - 0.5) / 0.25
    close(maps_NCHW, np.stack([x_NHWC[..., 0], -x_NHWC[..., 1]], axis=1))
    np.testing.assert_array_equal(gradient_NCHW, np.arange(24).reshape(3, 2, 2, 2)[[2, 0, 1]])


# ---- against autograd


@pytest.mark.parametrize("layer", ["first", "relu", "third", "gate"])
def test_a_net_with_every_difficulty_agrees_with_autograd_at_sizes_that_were_not_traced(
    tmp_path: Path, layer: str
) -> None:
    # Behind "third" a ReLU writes into a view of its maps, "relu" runs twice, of which the last run counts.
    graph, module = graph_of(mixed(), "cam", tmp_path, layers=[layer]), nets.seeded(nets.Mixed)
    for count in (1, 4, 9):
        x_NCHW, target_N = pictures(count), np.arange(count) % 4
        outputs = graph.run(x_NCHW, target_N)  # all at once
        maps_NCHW, gradient_NCHW = by_autograd(module, layer, x_NCHW, target_N)
        close(outputs["maps_NCHW"], maps_NCHW)
        close(outputs["maps_gradient_NCHW"], gradient_NCHW)
        close(outputs["logits_NK"], module(torch.tensor(x_NCHW, dtype=torch.float64)).detach())


@pytest.mark.parametrize("spelling", [*nets.RELUS, *nets.RELU6S])
def test_every_spelling_of_relu_behind_the_layer_is_differentiated(spelling: str) -> None:
    def net() -> nn.Module:
        function = (nets.RELUS | nets.RELU6S)[spelling]
        return nets.Sequential(nn.Sequential(nets.Call(lambda x: x * 4), nets.Call(function)))

    module, x_NCHW = nets.seeded(net), nets.pictures(3, 3, 8, 8)
    # one of the spellings asks for the number of pictures, which ties it
    inputs = torch.zeros(3, 3, 8, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    steps = unroll(MapsGradient(module, "first", 2), inputs, open_batch=True)
    with torch.no_grad():
        maps_NCHW, gradient_NCHW, _ = steps(x_NCHW, torch.tensor([2, 0, 1]))
    expected = by_autograd(nets.seeded(net), "first", x_NCHW.numpy(), [2, 0, 1])
    close(maps_NCHW, expected[0], 1e-6)
    close(gradient_NCHW, expected[1], 1e-6)


class OneForAll(nn.Module):
    """One ReLU behind the maps and, once more, behind their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.relu(self.first(x_NCHW)), 1)
        return self.head(self.relu(pooled - 0.1).flatten(1))


def test_a_layer_s_runs_of_single_pixels_do_not_count_where_it_has_maps(tmp_path: Path) -> None:
    graph = graph_of(small(nets.seeded(OneForAll)), "cam", tmp_path, layers=["relu"])
    maps_NCHW, gradient_NCHW = graph.maps_and_gradient(pictures(3), np.array([2, 0, 1]))
    expected = by_autograd(nets.seeded(OneForAll), "relu", pictures(3), [2, 0, 1], run=0)
    close(maps_NCHW, expected[0])
    close(gradient_NCHW, expected[1])


def test_maps_of_a_single_pixel_are_maps_where_a_layer_has_no_others(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return nets.Sequential(nn.AdaptiveAvgPool2d(1))

    graph = graph_of(small(nets.seeded(net)), "cam", tmp_path, layers=["middle"])
    maps_NCHW, gradient_NCHW = graph.maps_and_gradient(pictures(3), np.array([2, 0, 1]))
    expected = by_autograd(nets.seeded(net), "middle", pictures(3), [2, 0, 1])
    assert maps_NCHW.shape[2:] == (1, 1)
    close(maps_NCHW, expected[0])
    close(gradient_NCHW, expected[1])


class FrozenStem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.first(x_NCHW).relu()
        return self.head(self.last(x).relu().mean((2, 3)))


def test_a_stem_without_gradients_does_not_matter_to_a_layer_behind_it(tmp_path: Path) -> None:
    graph = graph_of(small(nets.seeded(FrozenStem)), "cam", tmp_path, layers=["last"])
    _, gradient_NCHW = graph.maps_and_gradient(pictures(2), np.array([2, 0]))
    close(gradient_NCHW, by_autograd(nets.seeded(FrozenStem), "last", pictures(2), [2, 0])[1])


# ---- the CAM family of a model of graphs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings, saliency, guided backprop, and the maps of two layers."""
    kinds = ("embedding", "saliency", "guided_backprop", "cam")
    made = bundle(mixed(), tmp_path_factory.mktemp("bundle") / "graphs", kinds=kinds).folder
    export(mixed(), "cam", made / "cam-first.onnx", layers=["first"])
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> GraphModel:
    return GraphModel.open(folder, providers="cpu")


@pytest.mark.parametrize("layer", ["", "first"])
@pytest.mark.parametrize("method", FAMILY)
def test_each_row_is_explained_as_by_the_network(model: GraphModel, method: str, layer: str) -> None:
    targets, options = [2, 0, 1, 3, 2], {"layer": layer}
    by_graph = run(method, GraphForward(model, pictures(5)), targets, options)
    by_torch = run(method, ForwardPass(mixed(), pictures(5)), targets, options)
    close(by_graph.values_NCHW, by_torch.values_NCHW)
    close(by_graph.extras["map_NCHW"], by_torch.extras["map_NCHW"])
    assert np.abs(by_torch.values_NCHW).max() > 0
    assert (by_graph.options, by_graph.meta.layer) == (by_torch.options, layer or "third")
    assert (by_graph.meta.runtime, by_graph.meta.backwards) == ("onnxruntime:CPUExecutionProvider", 1)


@pytest.mark.parametrize("method", ["guided_grad_cam", "score_cam"])
def test_methods_of_maps_and_more_are_explained_as_by_the_network(model: GraphModel, method: str) -> None:
    by_graph = run(method, GraphForward(model, pictures(3)), [2, 0, 1])
    by_torch = run(method, ForwardPass(mixed(), pictures(3)), [2, 0, 1])
    close(by_graph.values_NCHW, by_torch.values_NCHW)
    assert np.abs(by_torch.values_NCHW).max() > 0


def test_guided_grad_cam_needs_the_graph_of_guided_backprop_too(folder: Path, tmp_path: Path) -> None:
    for name in ("embedding.onnx", "cam.onnx", "model.json"):
        shutil.copyfile(folder / name, tmp_path / name)
    model = GraphModel.open(tmp_path, providers="cpu")
    assert "score_cam" in model.methods and "guided_grad_cam" not in model.methods
    with pytest.raises(UnsupportedModelError, match="guided_grad_cam needs the graph of guided_backprop"):
        run("guided_grad_cam", GraphForward(model, pictures(1)))


def test_input_x_gradient_is_the_picture_times_autograd_s_gradient(model: GraphModel) -> None:
    x_NCHW, targets = pictures(5), [2, 0, 1, 3, 2]
    x = torch.tensor(x_NCHW, dtype=torch.float64).requires_grad_()
    score = nets.seeded(nets.Mixed)(x)[torch.arange(5), targets].sum()
    (gradient_NCHW,) = torch.autograd.grad(score, x)
    close(run("input_x_gradient", GraphForward(model, x_NCHW), targets).values_NCHW, gradient_NCHW * x.detach())


def test_selected_rows_are_explained_alone(model: GraphModel) -> None:
    part = GraphForward(model, pictures(4)).select([3, 1])
    alone = GraphForward(model, pictures(4)[[3, 1]])
    close(run("grad_cam", part, [0, 2]).values_NCHW, run("grad_cam", alone, [0, 2]).values_NCHW)


def test_the_model_names_the_methods_that_its_maps_serve(model: GraphModel) -> None:
    assert set(FAMILY) < set(model.methods)


def test_without_the_graph_the_family_is_refused_and_the_command_that_writes_it_named(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("embedding.onnx", "saliency.onnx", "model.json"):
        shutil.copyfile(folder / name, tmp_path / name)
    model = GraphModel.open(tmp_path, providers="cpu")
    assert set(FAMILY).isdisjoint(model.methods)
    with pytest.raises(UnsupportedModelError, match=r"need a graph of cam.*export cam --model test:net --layer third"):
        run("layer_cam", GraphForward(model, pictures(1)))


def test_another_layer_is_refused_and_the_command_that_writes_its_graph_named(model: GraphModel) -> None:
    with pytest.raises(RequestError, match=r"of layer 'gate'; there are: .*'third'.*--layer gate") as caught:
        run("hires_cam", GraphForward(model, pictures(1)), options={"layer": "gate"})
    assert caught.value.field == "options.layer"


def test_two_graphs_of_one_layer_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.copyfile(copied / "cam.onnx", copied / "cam-third.onnx")
    with pytest.raises(ModelError, match=r"cam-third\.onnx and .*cam\.onnx are both graphs of cam of layer 'third'"):
        GraphModel.open(copied)


# ---- what is refused


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["thirt"], "no layer 'thirt'.*third"),
        (["head"], "layer 'head' has no map"),
        (["first", "third"], "a graph of cam is of one layer, not of first, third"),
    ],
)
def test_a_layer_that_has_no_maps_is_refused(tmp_path: Path, layers: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        export(mixed(), "cam", tmp_path / "cam.onnx", layers=layers)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_does_not_run_is_refused(tmp_path: Path) -> None:
    net = mixed()
    net.module.spare = nn.Conv2d(3, 3, 1).eval()
    with pytest.raises(RequestError, match="layer 'spare' exists but did not run"):
        export(net, "cam", tmp_path / "cam.onnx", layers=["spare"])


def test_half_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="half=True would move ReLUs of a graph of cam across zero"):
        export(mixed(), "cam", tmp_path / "cam.onnx", half=True)


class NoGradientBehind(FrozenStem):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(x_NCHW).detach()


def test_a_network_without_gradients_is_refused(tmp_path: Path) -> None:
    classifier = convlens.wrap(nets.seeded(NoGradientBehind).float(), size=12)
    with pytest.raises(UnsupportedModelError, match="no gradient reaches the maps of layer 'last'"):
        export(classifier, "cam", tmp_path / "cam.onnx", layers=["last"])
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_maps_has_a_bundle_without_the_graph(tmp_path: Path) -> None:
    linear = nets.classifier(nets.Linear(4, 3).float(), classes=3, crop=4, gradcam_layer="")
    made = bundle(linear, tmp_path / "graphs", kinds=("embedding", "cam"))
    assert [report.path.name for report in made.reports] == ["embedding.onnx"]
    assert [kind for kind, _ in made.skipped] == ["cam"]


def test_a_class_that_there_is_not_is_refused(red_and_green: OnnxRuntime) -> None:
    with pytest.raises(TargetError, match=r"0\.\.2"):
        red_and_green.maps_and_gradient(pictures(1, 2), np.array([3]))


class Liar(nn.Module):
    """Says something else while it is traced, before or behind the maps: what a wrong step would look like."""

    def __init__(self, before: float, behind: float) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.before, self.behind = before, behind

    def forward(self, x_NCHW: Tensor) -> Tensor:
        traced = isinstance(x_NCHW, FakeTensor)
        x = self.first(x_NCHW * self.before if traced else x_NCHW)
        return self.head((x * self.behind - x.detach() * (self.behind - 1) if traced else x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("before", "behind", "output"), [(1.01, 1.0, "maps_NCHW"), (1.0, 1.01, "maps_gradient_NCHW off by 1.00e-02")]
)
def test_a_disagreement_keeps_the_draft_and_names_the_output(
    tmp_path: Path, before: float, behind: float, output: str
) -> None:
    with pytest.raises(ModelError, match=f"{output}.*kept at"):
        export(small(nets.seeded(lambda: Liar(before, behind))), "cam", tmp_path / "cam.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["cam.draft.onnx"]


# ---- real networks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:squeezenet1_0"])
def test_networks_of_libraries_are_explained_as_by_torch(tmp_path: Path, name: str) -> None:
    classifier = load(f"{name}:untrained?size=64", device="cpu")
    model = GraphModel.open(bundle(classifier, tmp_path / "graphs", kinds=("embedding", "cam")).folder, providers="cpu")
    for method in FAMILY:
        by_graph = run(method, GraphForward(model, pictures(3, 64)), [3, 700, 999]).values_NCHW
        close(by_graph, run(method, ForwardPass(classifier, pictures(3, 64)), [3, 700, 999]).values_NCHW, 1e-4)


@pytest.mark.slow
def test_the_command_writes_a_graph_of_the_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cam.onnx"
    assert main(["cam", "--model", NETWORK, "--layer", "7", "-o", str(path)]) == 0
    assert "agrees with torch within" in capsys.readouterr().out
    assert OnnxRuntime(path).contract.layers == ("7",)


@pytest.mark.slow
def test_the_table_takes_the_kind() -> None:
    (row,) = compare_families([NETWORK], ["cam"])
    assert row.worst is not None
    assert row.worst <= 1e-4
