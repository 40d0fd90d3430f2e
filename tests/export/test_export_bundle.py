"""Folders of graphs: what is in them, what takes their place when, and what a model of graphs alone makes of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from torch import nn

from convlens import ForwardPass, run
from convlens.errors import ConvLensError, ModelError, RequestError, UnsupportedModelError
from convlens.explain import GraphForward, GraphModel, torch_sweeps
from convlens.explain.onnx_forward import graph_backends
from convlens.models import Classifier, load, pack, unpack
from convlens.runtime.graph_contract import labels_sha256
from convlens.runtime.graph_set import graph_files, open_graphs
from convlens.types import ArithmeticPrecision, Attribution, Step
from export.__main__ import main
from export.bundle import bundle
from export.exporter import export

KINDS = ("embedding", "occlusion", "saliency", "guided_backprop")
PROVIDER = "onnxruntime:CPUExecutionProvider"


def small(activation: nn.Module | None = None) -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(nets.Sequential(activation or nn.ReLU()), classes=3, crop=12)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(count, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(small(), tmp_path_factory.mktemp("bundle") / "graphs", kinds=KINDS, window=5, stride=3).folder


@pytest.fixture(scope="module")
def model(folder: Path) -> GraphModel:
    return GraphModel.open(folder, providers="cpu")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# ---- a model of graphs


def test_it_predicts_and_embeds_as_the_network_does(model: GraphModel) -> None:
    by_graph, by_torch = GraphForward(model, pictures(5)), ForwardPass(small(), pictures(5))
    np.testing.assert_allclose(by_graph.logits_NK, by_torch.logits_NK, atol=1e-6)
    np.testing.assert_allclose(by_graph.embedding_ND, by_torch.embedding_ND, atol=1e-6)
    np.testing.assert_array_equal(by_graph.targets(None), by_torch.targets(None))


@pytest.mark.parametrize("method", ["saliency", "guided_backprop", "input_x_gradient"])
def test_it_explains_each_row_for_its_own_target(model: GraphModel, method: str) -> None:
    targets = [2, 0, 1]
    by_graph = run(method, GraphForward(model, pictures(3)), targets)
    by_torch = run(method, ForwardPass(small(), pictures(3)), targets)
    assert isinstance(by_graph, Attribution)
    assert isinstance(by_torch, Attribution)
    np.testing.assert_allclose(by_graph.values_NCHW, by_torch.values_NCHW, atol=1e-6)
    np.testing.assert_allclose(by_graph.score_N, by_torch.score_N, atol=1e-6)
    assert by_graph.meta.runtime == PROVIDER
    assert by_graph.meta.backwards == 1


@pytest.mark.parametrize("asked", ["float32", "tf32", "half"])
def test_on_a_cpu_only_a_sweep_may_leave_float32_and_each_says_what_it_did(
    folder: Path, asked: ArithmeticPrecision
) -> None:
    forward = GraphForward(GraphModel.open(folder, providers="cpu", precision=asked), pictures(1))
    assert run("saliency", forward, [1]).meta.precision == "float32"
    swept = run("occlusion", forward, [1], {"window": 5, "stride": 3})
    assert swept.options["precision"] == ("half" if asked == "half" else "float32")
    # In half only by OpenVINO, and there only where that was faster just now.
    in_half = asked == "half" and swept.meta.runtime == "openvino:bfloat16"
    assert swept.meta.precision == ("half" if in_half else "float32")
    assert in_half or swept.meta.runtime == PROVIDER


def test_selected_rows_share_the_one_run(model: GraphModel) -> None:
    forward = GraphForward(model, pictures(4))
    part = forward.select([3, 1])
    np.testing.assert_array_equal(part.logits_NK, forward.logits_NK[[3, 1]])
    one = run("saliency", part, [0, 2])
    alone = run("saliency", GraphForward(model, pictures(4)[[3, 1]]), [0, 2])
    assert isinstance(one, Attribution)
    assert isinstance(alone, Attribution)
    np.testing.assert_allclose(one.values_NCHW, alone.values_NCHW, atol=1e-7)
    assert one.meta.forwards == 1


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize(("options", "whole"), [({"window": 5, "stride": 3}, True), ({"window": 4}, False)])
def test_it_sweeps_in_its_graph_where_that_has_these_windows_and_no_runs_go_side_by_side(
    folder: Path, options: dict[str, Any], whole: bool, lanes: int
) -> None:
    model, sweep = GraphModel.open(folder, threads=lanes), "graph" if whole and lanes == 1 else "batches"
    options = {"stride": 4, "fill": 0.5, "score": "probability"} | options
    by_graph = run("occlusion", GraphForward(model, pictures(2)), [1, 2], options)
    by_torch = run("occlusion", ForwardPass(small(), pictures(2)), [1, 2], options)
    assert isinstance(by_graph, Attribution)
    assert isinstance(by_torch, Attribution)
    np.testing.assert_allclose(by_graph.extras["grid_NRQ"], by_torch.extras["grid_NRQ"], atol=1e-6)
    assert (by_graph.meta.runtime, by_graph.meta.sweep) == (PROVIDER, sweep)


def test_it_masks_at_random_as_the_network_does(model: GraphModel) -> None:
    options = {"masks": 24, "cells": 3, "score": "probability"}
    by_graph = run("rise", GraphForward(model, pictures(2)), [1, 2], options)
    by_torch = run("rise", ForwardPass(small(), pictures(2)), [1, 2], options)
    assert isinstance(by_graph, Attribution)
    assert isinstance(by_torch, Attribution)
    np.testing.assert_allclose(by_graph.values_NCHW, by_torch.values_NCHW, atol=1e-6)
    assert by_graph.meta.runtime == PROVIDER


def test_it_names_the_methods_that_it_has_graphs_for(model: GraphModel) -> None:
    expected = {"saliency", "guided_backprop", "input_x_gradient", "occlusion", "rise", "neighbours"}
    assert set(model.methods) == expected


def test_it_refuses_what_no_graph_gives(model: GraphModel) -> None:
    forward = GraphForward(model, pictures(1))
    with pytest.raises(UnsupportedModelError, match="deconvnet needs the graph of deconvnet, which this model lacks"):
        run("deconvnet", forward)
    with pytest.raises(UnsupportedModelError, match="smoothgrad needs the network itself"):
        run("smoothgrad", forward)
    with pytest.raises(RequestError, match="gradients of logits only; use score=logit"):
        run("saliency", forward, options={"score": "probability"})


@pytest.mark.parametrize(("threads", "sweep"), [(1, "graph"), (2, "batches")])
def test_graphs_beside_a_network_sweep_for_it(folder: Path, threads: int, sweep: str) -> None:
    net = small()
    labels = labels_sha256(net.spec.labels)
    graphs = open_graphs([folder], weights_sha256="0" * 64, labels_sha256=labels, threads=threads)
    forward = ForwardPass(net, pictures(1), sweeps=torch_sweeps(net, graph_backends(graphs)))
    found = run("occlusion", forward, [0], {"window": 5, "stride": 3})
    assert isinstance(found, Attribution)
    assert (found.meta.runtime, found.meta.sweep) == (PROVIDER, sweep)


# ---- the folder


def test_the_folder_holds_a_graph_of_each_kind_and_the_spec_with_its_labels(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == [
        "embedding.onnx",
        "guided_backprop.onnx",
        "model.json",
        "occlusion.onnx",
        "saliency.onnx",
    ]
    assert GraphModel.open(folder).spec == small().spec


def test_a_network_that_guided_backprop_is_not_defined_for_does_without(tmp_path: Path) -> None:
    made = bundle(small(nn.SiLU()), tmp_path / "graphs", kinds=("embedding", "guided_backprop"))
    assert [report.path.name for report in made.reports] == ["embedding.onnx"]
    ((kind, reason),) = made.skipped
    assert (kind, "SiLU" in reason) == ("guided_backprop", True)
    assert made.reports[0].path.is_file()


def test_a_bundle_reports_the_steps_of_each_graph(tmp_path: Path) -> None:
    steps: list[Step] = []
    bundle(small(), tmp_path / "graphs", kinds=("scores", "occlusion"), window=5, stride=3, on_step=steps.append)
    assert steps == [
        Step("scores: tracing", 0, 2),
        Step("scores: comparing with torch at batch 1, 3, 8", 0, 2),
        Step("scores: written", 0, 2),
        Step("occlusion: tracing", 1, 2),
        Step("occlusion: comparing with torch on up to 16 windows of each sweep", 1, 2),
        Step("occlusion: written", 1, 2),
    ]


def test_a_second_bundle_takes_the_place_of_the_first(tmp_path: Path) -> None:
    bundle(small(), tmp_path / "graphs", kinds=("embedding", "scores"))
    bundle(small(), tmp_path / "graphs", kinds=("embedding",))
    assert sorted(file.name for file in (tmp_path / "graphs").iterdir()) == ["embedding.onnx", "model.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["graphs"]


def test_a_failure_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    bundle(small(), tmp_path / "graphs", kinds=("embedding",))
    before = (tmp_path / "graphs" / "embedding.onnx").read_bytes()
    with pytest.raises(RequestError, match="stride=9 with window=4"):
        bundle(small(), tmp_path / "graphs", kinds=("embedding", "occlusion"), window=4, stride=9)
    assert (tmp_path / "graphs" / "embedding.onnx").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["graphs"]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RequestError, match="holds other things than graphs"):
        bundle(small(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_packed_network_is_left_alone(tmp_path: Path) -> None:
    net = load("torchvision:squeezenet1_1:untrained?size=64&resize=64", device="cpu")
    pack(net, tmp_path)
    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(RequestError, match="holds other things than graphs"):
        bundle(net, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_an_error_in_words() -> None:
    with pytest.raises(ConvLensError, match=r"/proc/graphs cannot be written \(.+\); choose another folder"):
        bundle(small(), Path("/proc/graphs"), kinds=("embedding",))


def test_the_command_writes_a_bundle_and_says_how_well_it_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
    given = ["bundle", "--model", name, "-o", str(tmp_path / "out"), "--kinds", "embedding", "scores"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert said.count("agrees with torch within") == 2
    assert GraphModel.open(tmp_path / "out").spec.crop == 64


# ---- what is refused


def test_a_graph_of_other_weights_among_them_is_refused_with_both_hashes(copy: Path) -> None:
    net = small()
    export(replace(net, spec=replace(net.spec, weights_sha256="1" * 64)), "deconvnet", copy / "deconvnet.onnx")
    with pytest.raises(ModelError, match=r"exported from weights 1{64} .* those in use are 0{64}"):
        GraphModel.open(copy)


def test_a_graph_of_other_class_names_is_refused(copy: Path) -> None:
    net = small()
    export(replace(net, spec=replace(net.spec, labels=("a", "b", "c"))), "scores", copy / "scores.onnx")
    with pytest.raises(ModelError, match="exported with other class names"):
        GraphModel.open(copy)


def test_two_graphs_of_one_kind_are_refused_by_name(copy: Path) -> None:
    shutil.copyfile(copy / "saliency.onnx", copy / "again.onnx")
    with pytest.raises(ModelError, match=r"again\.onnx and .*saliency\.onnx are both graphs of saliency"):
        GraphModel.open(copy)


def test_a_graph_that_begins_at_bytes_is_refused(copy: Path) -> None:
    export(small(), "scores", copy / "scores.onnx", preprocessing=True)
    with pytest.raises(ModelError, match="begins at uint8 images"):
        GraphModel.open(copy)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("embedding.onnx", "lacks a graph of embeddings"), ("model.json", "there is no model.json")],
)
def test_a_folder_without_what_it_needs_is_no_model(copy: Path, missing: str, said: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(ModelError, match=said):
        GraphModel.open(copy)


def test_a_folder_of_graphs_is_no_network(folder: Path) -> None:
    with pytest.raises(ModelError, match="holds exported graphs and no network"):
        unpack(folder)


def test_drafts_are_no_graphs(tmp_path: Path) -> None:
    (tmp_path / "scores.draft.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="no graphs"):
        graph_files(tmp_path)
