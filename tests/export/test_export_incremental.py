"""Incremental sweeps against the full ones of ``convlens.explain``, window by window, by any way through the cuts.

Small networks do not pay, and the cheapest way through them has one stage. So most tests here set the costs: to nothing
but arithmetic, or to numbers drawn by chance, which leads through other cuts with every seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from nets import SqueezeExcite, classifier, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.errors import RequestError
from convlens.explain import ForwardPass, run
from convlens.explain.sweeps.windows import Windows
from convlens.models import Classifier, load
from convlens.runtime.onnx_runtime import OnnxRuntime
from export.__main__ import main
from export.exporter import export
from export.incremental import builder, planner
from export.incremental.cuts import changed_spans
from export.incremental.network import read_network

pytestmark = pytest.mark.slow

CROP = 26


class Net(nn.Module):
    """The layers -> mean over space -> head; ``first`` only names a layer."""

    def __init__(self, *layers: nn.Module, channels: int) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.layers(self.first(x_NCHW)).mean((2, 3)))


class Branches(nn.Module):
    """Several ways side by side, joined along the channels."""

    def __init__(self, *ways: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([way(x) for way in self.ways], dim=1)


class Skip(nn.Module):
    def __init__(self, way: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.way, self.shortcut = way, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.way(x) + self.shortcut(x))


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def channelwise(x: Tensor) -> Tensor:
    """As GoogLeNet changes its input."""
    return torch.cat([x[:, i].unsqueeze(1) * (1.0 + i / 4) + i / 8 for i in range(3)], 1)


def conv(given: int, made: int, kernel: int, **more: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(given, made, kernel, **more), nn.BatchNorm2d(made), nn.ReLU())  # type: ignore[arg-type]


NETS: dict[str, Callable[[], Net]] = {
    "convolutions": lambda: Net(*(conv(c, 4, 3, padding=1) for c in (3, 4, 4)), channels=4),
    "a stem that reads no further than it fits": lambda: Net(
        conv(3, 4, 7, stride=2), nn.MaxPool2d(3, 2, ceil_mode=True), conv(4, 5, 3, padding=1), channels=5
    ),
    "strides": lambda: Net(conv(3, 4, 3, stride=2, padding=1), conv(4, 5, 3, stride=2, padding=1), channels=5),
    "a stride that passes over positions": lambda: Net(
        conv(3, 4, 3, padding=1), conv(4, 5, 1, stride=2), conv(5, 5, 3, padding=1), channels=5
    ),
    "sizes that do not divide": lambda: Net(
        conv(3, 4, 4, stride=3, padding=2), conv(4, 4, 3, padding=1), nn.MaxPool2d(2), channels=4
    ),
    "dilation": lambda: Net(conv(3, 4, 3, dilation=2, padding=2), conv(4, 4, 3, dilation=3, padding=1), channels=4),
    "groups": lambda: Net(conv(3, 4, 1), conv(4, 4, 3, padding=1, groups=4), conv(4, 6, 3, groups=2), channels=6),
    "unequal sides": lambda: Net(conv(3, 4, (3, 1), padding=(1, 0)), conv(4, 4, (2, 5), stride=(1, 2)), channels=4),
    "max pools": lambda: Net(
        conv(3, 4, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), channels=4
    ),
    "average pools": lambda: Net(
        conv(3, 4, 3, padding=1),
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        channels=4,
    ),
    "branches": lambda: Net(
        conv(3, 4, 3, padding=1),
        Branches(
            conv(4, 2, 1),
            nn.Sequential(conv(4, 2, 1), conv(2, 3, 3, padding=1)),
            nn.Sequential(conv(4, 2, 1), conv(2, 3, 5, padding=2)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(4, 2, 1)),
        ),
        conv(10, 4, 1),
        Branches(conv(4, 3, 1), conv(4, 3, 3, padding=1)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        channels=6,
    ),
    "skips": lambda: Net(
        conv(3, 4, 3, padding=1),
        Skip(nn.Sequential(conv(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))),
        Skip(
            nn.Sequential(conv(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)),
            nn.Conv2d(4, 6, 1, stride=2),
        ),
        Skip(nn.Sequential(conv(6, 2, 1), conv(2, 2, 3, padding=1), nn.Conv2d(2, 6, 1))),
        channels=6,
    ),
    "pointwise": lambda: Net(
        Call(channelwise),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Hardswish(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.PReLU(4),
        Call(lambda x: x / 2.0 - x.sigmoid() * 0.5),
        channels=4,
    ),
}
# What ends the part that is followed: it mixes positions, or nobody has said that it does not.
ENDS: dict[str, Callable[[], Net]] = {
    "squeeze and excitation": lambda: Net(
        conv(3, 4, 3, padding=1), SqueezeExcite(4), conv(4, 4, 3, padding=1), channels=4
    ),
    "a roll": lambda: Net(conv(3, 4, 3, padding=1), Call(lambda x: x.roll(5, 3)), conv(4, 4, 3, padding=1), channels=4),
    "a sum along a row": lambda: Net(conv(3, 4, 3, padding=1), Call(lambda x: x.cumsum(3) / 9), channels=4),
    "a transposition": lambda: Net(
        conv(3, 4, 3, padding=1), Call(lambda x: x.transpose(2, 3)), conv(4, 4, 3, padding=1), channels=4
    ),
    "upsampling": lambda: Net(conv(3, 4, 3, padding=1), nn.Upsample(scale_factor=2), channels=4),
    "a constant that varies over space": lambda: Net(
        conv(3, 4, 3, padding=1), Call(lambda x: x * torch.linspace(0, 1, CROP)), channels=4
    ),
}


@pytest.fixture
def _by_chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plan will do, and which is the cheapest is drawn: stages that are longer cost no more."""
    generator = np.random.default_rng(request.node.callspec.params.get("seed", 0))
    monkeypatch.setattr(builder, "MIN_SPEED_UP", 0.0)
    monkeypatch.setattr(planner.CostModel, "stage", lambda *_: float(generator.random()))
    monkeypatch.setattr(planner.CostModel, "rest", lambda *_: float(generator.random()) * 2)


@pytest.fixture
def _arithmetic_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes and memory cost nothing: as many cuts as save a multiplication."""
    monkeypatch.setattr(builder, "MIN_SPEED_UP", 0.0)
    monkeypatch.setattr(planner, "_NODE", 0.0)
    monkeypatch.setattr(planner, "_TRAFFIC", 1e18)


def model_of(make: Callable[[], nn.Module], crop: int = CROP) -> Classifier:
    module = seeded(make).float()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.bias.data.fill_(0.3)  # so that zero padding is not what a layer gives for zeros
    return classifier(module, classes=3, crop=crop)


def picture(crop: int = CROP) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((3, crop, crop)).astype(np.float32)


def assert_same_grid(
    model: Classifier, path: Path, *, window: int, stride: int, fill: float = 0.5, expected: str = "incremental"
) -> None:
    graph = OnnxRuntime(path, providers="cpu")
    assert graph.contract.sweep is not None
    assert graph.contract.sweep.strategy == expected
    x_CHW = picture(model.spec.crop)
    for target in (0, 2):
        options = {"window": window, "stride": stride, "fill": fill}
        result = run("occlusion", ForwardPass(model, x_CHW[None]), [target], options)
        expected_RQ = result.score_N[0] - result.extras["grid_NRQ"][0]
        # another order of sums: a few roundings of float32
        np.testing.assert_allclose(graph.sweep(x_CHW, target, fill=fill), expected_RQ, rtol=0, atol=2e-6)


def incremental(model: Classifier, path: Path, *, window: int, stride: int, batch: int = 7) -> Path:
    return export(model, "occlusion", path, window=window, stride=stride, batch=batch, strategy="incremental").path


@pytest.mark.usefixtures("_arithmetic_only")
@pytest.mark.parametrize("name", NETS)
def test_every_window_scores_as_in_a_full_sweep(name: str, tmp_path: Path) -> None:
    model = model_of(NETS[name])
    path = incremental(model, tmp_path / "graph.onnx", window=5, stride=3)
    assert_same_grid(model, path, window=5, stride=3)
    onnx.checker.check_model(path, full_check=True)


@pytest.mark.usefixtures("_by_chance")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["branches", "skips", "a stem that reads no further than it fits"])
def test_no_way_through_the_cuts_changes_a_score(name: str, seed: int, tmp_path: Path) -> None:
    model = model_of(NETS[name])
    path = incremental(model, tmp_path / "graph.onnx", window=4, stride=3, batch=32)
    assert_same_grid(model, path, window=4, stride=3)


@pytest.mark.usefixtures("_by_chance")
@pytest.mark.parametrize("seed", range(8))
def test_networks_drawn_by_chance_score_as_in_a_full_sweep(seed: int, tmp_path: Path) -> None:
    crop = 40 + 3 * seed
    model = model_of(lambda: drawn(seed), crop=crop)
    path = incremental(model, tmp_path / "graph.onnx", window=4, stride=3, batch=16)
    assert_same_grid(model, path, window=4, stride=3)


def drawn(seed: int) -> Net:
    """Four layers of any kind that a small picture survives."""
    generator, channels, layers = np.random.default_rng(seed), 3, list[nn.Module]()
    for _ in range(4):
        kernel, stride, dilation = (int(generator.integers(1, most)) for most in (5, 3, 3))
        kind, padding = generator.integers(4), int(generator.integers(0, kernel // 2 + 1))
        if kind == 0:
            layers.append(nn.MaxPool2d(max(kernel, 2), stride, padding, ceil_mode=bool(generator.integers(2))))
        elif kind == 1:
            ceil, count = (bool(generator.integers(2)) for _ in range(2))
            layers.append(nn.AvgPool2d(max(kernel, 2), stride, padding, ceil_mode=ceil, count_include_pad=count))
        elif kind == 2:
            layers.append(Branches(conv(channels, 2, 1), conv(channels, 2, 3, padding=1), nn.Identity()))
            channels += 4
        else:
            layers.append(conv(channels, 4, kernel, stride=stride, padding=padding, dilation=dilation))
            channels = 4
    return Net(conv(3, 3, 3, padding=1), *layers, channels=channels)


@pytest.mark.usefixtures("_arithmetic_only")
@pytest.mark.parametrize(("window", "stride", "batch"), [(1, 1, 64), (12, 2, 64), (9, 4, 1), (6, 6, 1000)])
def test_any_geometry_scores_as_in_a_full_sweep(window: int, stride: int, batch: int, tmp_path: Path) -> None:
    model = model_of(NETS["skips"])
    path = incremental(model, tmp_path / "graph.onnx", window=window, stride=stride, batch=batch)
    assert_same_grid(model, path, window=window, stride=stride)


@pytest.mark.usefixtures("_arithmetic_only")
def test_a_window_larger_than_the_picture_leaves_nothing_to_save(tmp_path: Path) -> None:
    model = model_of(NETS["convolutions"])
    path = incremental(model, tmp_path / "graph.onnx", window=CROP + 9, stride=7)
    assert_same_grid(model, path, window=CROP + 9, stride=7, expected="full")


@pytest.mark.usefixtures("_arithmetic_only")
@pytest.mark.parametrize("name", ENDS)
def test_behind_a_layer_that_cannot_be_followed_all_is_recomputed(name: str, tmp_path: Path) -> None:
    model = model_of(ENDS[name])
    path = incremental(model, tmp_path / "graph.onnx", window=5, stride=3)
    assert_same_grid(model, path, window=5, stride=3)
    crops = [node for node in body_of(path).node if node.op_type == "Gather" and node.input[0].startswith("rows/")]
    assert len(crops) == 1  # the first layer's


def body_of(path: Path) -> onnx.GraphProto:
    (loop,) = (node for node in onnx.load(path).graph.node if node.op_type == "Loop")
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    return body


@pytest.mark.usefixtures("_arithmetic_only")
def test_bytes_and_half_precision_work(tmp_path: Path) -> None:
    model = model_of(NETS["skips"])
    for options in ({"preprocessing": True}, {"half": True}):
        report = export(
            model, "occlusion", tmp_path / "graph.onnx", window=5, stride=3, strategy="incremental", **options
        )
        assert report.contract.sweep is not None
        assert report.contract.sweep.strategy == "incremental"  # and export itself has compared it with torch


def test_the_packaged_networks_layers_agree(tmp_path: Path) -> None:
    model = load("packaged:efficientnet_lite0", device="cpu")
    options = {"window": 16, "stride": 16, "batch": 16, "input_size": 128}
    report = export(model, "occlusion", tmp_path / "graph.onnx", strategy="incremental", **options)
    assert report.speed_up > 1.05
    x_CHW = np.random.default_rng(0).standard_normal((3, 128, 128)).astype(np.float32)
    result = run("occlusion", ForwardPass(model, x_CHW[None]), [7], {"window": 16, "stride": 16})
    expected_RQ = result.score_N[0] - result.extras["grid_NRQ"][0]
    found_RQ = OnnxRuntime(report.path, providers="cpu").sweep(x_CHW, 7)
    np.testing.assert_allclose(found_RQ, expected_RQ, rtol=0, atol=1e-4 * np.abs(expected_RQ).max())


# ---- what is not written, and what is said


def test_where_it_does_not_pay_a_full_sweep_is_written_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "graph.onnx"
    given = ["--model", "torchvision:squeezenet1_1:untrained?size=64", "--window", "40", "--stride", "24"]
    assert main(["occlusion", *given, "--strategy", "incremental", "-o", str(path)]) == 0
    said = capsys.readouterr().out
    geometry = OnnxRuntime(path, providers="cpu").contract.sweep
    assert geometry is not None
    assert geometry.strategy == "full"
    assert geometry.note.startswith("a full sweep: recomputing")
    assert geometry.note in said


def test_weights_that_would_not_fit_twice_make_a_full_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "MIN_SPEED_UP", 0.0)
    monkeypatch.setattr(builder, "MAX_BYTES", 1000)
    model = model_of(NETS["convolutions"])
    report = export(model, "occlusion", tmp_path / "graph.onnx", window=5, stride=3, strategy="incremental")
    assert "2 GiB" in report.note


def test_a_full_sweep_that_was_asked_for_says_nothing(tmp_path: Path) -> None:
    report = export(model_of(NETS["convolutions"]), "occlusion", tmp_path / "graph.onnx", window=5, stride=3)
    assert report.contract.sweep is not None
    assert (report.contract.sweep.strategy, report.note) == ("full", "")


@pytest.mark.parametrize(
    ("kind", "strategy", "said"),
    [("occlusion", "incremantal", "full, incremental"), ("scores", "incremental", "no windows")],
)
def test_a_strategy_that_makes_no_sense_is_refused(kind: str, strategy: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=said):
        export(model_of(NETS["convolutions"]), kind, tmp_path / "graph.onnx", strategy=strategy)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# ---- what changes


def test_the_first_crops_of_two_convolutions_can_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[planner.Plan] = []
    make = planner.cheapest_plan

    def keeping(*given: object) -> planner.Plan:
        kept.append(make(*given))  # type: ignore[arg-type]
        return kept[-1]

    monkeypatch.setattr(builder, "cheapest_plan", keeping)
    monkeypatch.setattr(builder, "MIN_SPEED_UP", 0.0)
    monkeypatch.setattr(planner, "_NODE", 0.0)
    monkeypatch.setattr(planner, "_TRAFFIC", 1e18)
    model = model_of(lambda: Net(conv(3, 4, 3, padding=1), conv(4, 4, 5, padding=2), channels=4))
    incremental(model, tmp_path / "graph.onnx", window=2, stride=2)
    first, second = kept[0].stages
    # 2 pixels change 4 positions, which read 6; these change 8, which read 12
    assert [first.output_patches[0].length, first.crops[0].taken] == [4, 6]
    assert [second.output_patches[0].length, second.crops[0].taken] == [8, 12]


@pytest.mark.parametrize("name", ["branches", "skips", "average pools", "a stem that reads no further than it fits"])
def test_nothing_outside_the_propagated_interval_changes(name: str, tmp_path: Path) -> None:
    chunk = chunk_of(model_of(NETS[name]), tmp_path / "full.onnx", window=4, stride=3)
    network, windows = read_network(chunk), Windows(CROP, CROP, 4, 3)
    assert network is not None
    rows, names = changed_spans(network, windows, 0), [step.output for step in network.steps]
    for index, top in enumerate(windows.tops):
        bright, dark = (maps_of(chunk, names, top=int(top), fill=fill) for fill in (9.0, -7.0))
        for output in names:
            changed = np.flatnonzero(np.abs(bright[output] - dark[output]).max(axis=(0, 1, 3)))
            assert changed.min(initial=CROP) >= rows[output].start[index]
            assert changed.max(initial=-1) < rows[output].stop[index]


def chunk_of(model: Classifier, path: Path, *, window: int, stride: int) -> onnx.ModelProto:
    """The body of a full sweep's loop as a graph of its own, for one window."""
    export(model, "occlusion", path, window=window, stride=stride, batch=1)
    whole, body = onnx.load(path), body_of(path)
    corners = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1]) for name in ("top_B", "left_B")]
    nodes = [node for node in body.node if not {"top_B", "left_B", "more_out"}.intersection(node.output)]
    graph = onnx.helper.make_graph(
        nodes, "chunk", [*whole.graph.input, *corners], list(body.output)[1:], initializer=body.initializer
    )
    return onnx.helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)


def maps_of(chunk: onnx.ModelProto, names: list[str], *, top: int, fill: float) -> dict[str, np.ndarray]:
    """All maps of the picture with a window there."""
    shown = onnx.ModelProto()
    shown.CopyFrom(chunk)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"x_NCHW": picture()[None], "target": np.array(0), "fill": np.array(fill, np.float32)}
    found = session.run(names, given | {"top_B": np.array([top]), "left_B": np.array([4])})
    return dict(zip(names, found, strict=True))
