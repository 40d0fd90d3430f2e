"""Graphs by OpenVINO: float32 as torch gives it, bfloat16 near it, nothing sent anywhere, and what it refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
import torch
from graph_cache import GraphCache
from onnx import helper
from torch import nn

from convlens.errors import ModelError, RequestError
from convlens.explain import ForwardPass, GraphModel, run, torch_sweeps
from convlens.explain.onnx_forward import graph_backends, graph_sweeps
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.explain.sweeps.openvino import openvino_sweeps
from convlens.explain.sweeps.windows import Windows
from convlens.models import Classifier
from convlens.runtime.graph_contract import Precision
from convlens.runtime.graph_set import GraphSet
from convlens.runtime.onnx_runtime import OnnxRuntime

pytest.importorskip("openvino_telemetry", reason="openvino is not installed")
from convlens.runtime import openvino_runtime
from convlens.runtime.openvino_runtime import OpenVinoRuntime, precisions

NAME = "openvino:bfloat16"
WINDOWS = Windows(12, 12, 3, 3)
in_bfloat16 = pytest.mark.skipif("half" not in precisions(), reason="the processor does not compute in bfloat16")


def small() -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(nets.Sequential(nn.ReLU()), classes=3, crop=12)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 12, 12)).astype(np.float32)


def truth(x_NCHW: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return small().module.double()(torch.tensor(x_NCHW, dtype=torch.float64)).numpy()


@pytest.fixture(scope="module")
def scores(exported: GraphCache) -> Path:
    return exported(small(), "scores")


def changed(path: Path, **fields: object) -> bytes:
    """The graph with other fields in its contract; without a contract where none are given."""
    graph = onnx.load(path)
    held = {entry.key: entry.value for entry in graph.metadata_props}
    held["convlens.contract"] = json.dumps(json.loads(held["convlens.contract"]) | fields)
    del graph.metadata_props[:]
    helper.set_model_props(graph, held if fields else {})
    return graph.SerializeToString()


# ---- what it answers


@pytest.mark.parametrize("count", [1, 2, 5])
def test_float32_is_float32_although_the_processor_may_have_a_faster_format(scores: Path, count: int) -> None:
    x_NCHW = pictures(count)
    # OpenVINO's own choice would be bfloat16, which is off by some 1e-3.
    np.testing.assert_allclose(OpenVinoRuntime(scores).logits(x_NCHW), truth(x_NCHW), atol=1e-6)


@in_bfloat16
def test_half_is_bfloat16_and_near_the_truth(scores: Path) -> None:
    x_NCHW = pictures(7)
    error = np.abs(OpenVinoRuntime(scores, precision="half").logits(x_NCHW) - truth(x_NCHW)).max()
    # A number of bfloat16 is off by up to 2^-8 of itself.
    assert 1e-4 < error / np.abs(truth(x_NCHW)).max() < 0.02


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_graph_compiled_for_a_batch_answers_any_number_of_pictures(scores: Path, count: int) -> None:
    runtime, x_NCHW = OpenVinoRuntime(scores, batch=3), pictures(count)
    np.testing.assert_allclose(runtime.logits(x_NCHW), truth(x_NCHW), atol=1e-6)
    (one_run,) = runtime.logits_each([lambda: x_NCHW[:3]])
    np.testing.assert_allclose(one_run, truth(x_NCHW[:3]), atol=1e-6)


def test_more_pictures_than_a_graph_is_compiled_for_are_refused(scores: Path) -> None:
    with pytest.raises(RequestError, match="runs of 3 images, not of 4"):
        list(OpenVinoRuntime(scores, batch=3).logits_each([lambda: pictures(4)]))


@pytest.mark.parametrize(
    "given",
    [lambda x: x.astype(np.float64), torch.tensor, lambda x: np.flip(x, 0).copy()[::-1]],
    ids=["float64", "torch", "negative strides"],
)
def test_pictures_may_come_however_they_lie(scores: Path, given: object) -> None:
    logits_NK = OpenVinoRuntime(scores.read_bytes()).logits(given(pictures(3)))  # type: ignore[operator]
    np.testing.assert_allclose(logits_NK, truth(pictures(3)), atol=1e-6)


def test_a_graph_of_embeddings_gives_both(exported: GraphCache) -> None:
    graph, x_NCHW = exported(small(), "embedding"), pictures(3)
    runtime, by_onnx = OpenVinoRuntime(graph), OnnxRuntime(graph, providers="cpu")
    for got, expected in zip(runtime.logits_and_embeddings(x_NCHW), by_onnx.logits_and_embeddings(x_NCHW), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(runtime.embeddings(x_NCHW), runtime.logits_and_embeddings(x_NCHW)[1])


@pytest.mark.parametrize("precision", precisions())
def test_threads_do_not_see_each_others_pictures(scores: Path, precision: Precision) -> None:
    runtime = OpenVinoRuntime(scores, precision=precision, threads=2)
    alone = [runtime.logits(pictures(1 + seed % 3, seed)) for seed in range(48)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: runtime.logits(pictures(1 + seed % 3, seed)), range(48)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parallel_runs_answer_in_order_and_keep_what_they_gave(scores: Path) -> None:
    each = [pictures(1 + seed % 3, seed) for seed in range(24)]
    given = list(OpenVinoRuntime(scores, threads=2).logits_each([partial(np.copy, x_NCHW) for x_NCHW in each]))
    for x_NCHW, logits_NK in zip(each, given, strict=True):
        np.testing.assert_allclose(logits_NK, truth(x_NCHW), atol=1e-6)


def test_a_sweep_that_ends_early_leaves_all_runs_to_the_next(scores: Path) -> None:
    runtime, x_NCHW = OpenVinoRuntime(scores, threads=2), pictures(2)
    for _ in range(4):  # more often than there are runs
        given = runtime.logits_each([lambda: x_NCHW] * 6)
        next(given)
        given.close()
        with pytest.raises(RequestError, match="should be float32 of shape"):
            list(runtime.logits_each([lambda: x_NCHW, lambda: x_NCHW[:, :2]]))
    np.testing.assert_allclose(runtime.logits(x_NCHW), truth(x_NCHW), atol=1e-6)


def test_sweeps_of_several_threads_do_not_wait_for_each_other(scores: Path) -> None:
    runtime = OpenVinoRuntime(scores, threads=2)
    each = [[pictures(2, 100 * thread + n) for n in range(12)] for thread in range(6)]
    with ThreadPoolExecutor(6) as pool:
        futures = [
            pool.submit(lambda own=own: list(runtime.logits_each([partial(np.copy, x) for x in own]))) for own in each
        ]
        together = [future.result(timeout=60) for future in futures]
    for own, given in zip(each, together, strict=True):
        for x_NCHW, logits_NK in zip(own, given, strict=True):
            np.testing.assert_allclose(logits_NK, truth(x_NCHW), atol=1e-6)


# ---- what it does not do


def test_nothing_is_sent_and_nothing_written_into_the_home_folder(scores: Path, tmp_path: Path) -> None:
    code = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request", "os.fork"):
        sys.stderr.write(f"{event} {arguments}\\n")
sys.addaudithook(watch)
import numpy as np
from convlens.runtime.openvino_runtime import OpenVinoRuntime
OpenVinoRuntime(sys.argv[1]).logits(np.zeros((1, 3, 12, 12), np.float32))
import openvino.tools.ovc
openvino.convert_model(sys.argv[1])
sys.exit("openvino_telemetry" in sys.modules)
"""
    environment = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(scores)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not (tmp_path / "intel").exists()


def test_openvino_is_not_loaded_before_half_precision_is_asked_for(scores: Path) -> None:
    code = """
import sys
from convlens.explain.onnx_forward import graph_backends
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.explain.sweeps.windows import Windows
from convlens.runtime.graph_set import GraphSet
from convlens.runtime.onnx_runtime import OnnxRuntime
sweeps = SweepAutotuner(graph_backends(GraphSet((OnnxRuntime(sys.argv[1], providers="cpu"),))))
assert len(sweeps.backends) == 2
sweeps.choose(Windows(12, 12, 3, 3))
sys.exit("openvino" in sys.modules)
"""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code, str(scores)], env=environment, check=False, timeout=120)
    assert ended.returncode == 0


# ---- what it refuses


def test_a_graph_without_our_contract_is_refused(scores: Path) -> None:
    with pytest.raises(ModelError, match="was not exported by ConvLens"):
        OpenVinoRuntime(changed(scores))


def test_a_graph_that_breaks_its_contract_is_refused(scores: Path) -> None:
    ports = [{"name": "x_NCHW", "shape": ["N", 3, 14, 14], "dtype": "float32"}]
    with pytest.raises(ModelError, match=r"does not keep its contract.*12, 12.*14, 14"):
        OpenVinoRuntime(changed(scores, inputs=ports))


def test_a_graph_of_another_kind_is_refused(exported: GraphCache) -> None:
    with pytest.raises(ModelError, match="a graph of saliency in float32"):
        OpenVinoRuntime(exported(small(), "saliency"))


@pytest.mark.parametrize("graph", [b"nothing", "/nowhere.onnx"])
def test_what_is_no_graph_is_refused(graph: bytes | str) -> None:
    with pytest.raises(ModelError, match="cannot be opened by OpenVINO"):
        OpenVinoRuntime(graph)


def test_half_is_refused_where_the_processor_would_compute_in_float32(
    scores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_runtime, "precisions", lambda: ("float32",))
    with pytest.raises(ModelError, match="'half' is not available on this processor; there are: float32"):
        OpenVinoRuntime(scores, precision="half")
    (half,) = openvino_sweeps(OnnxRuntime(scores, providers="cpu"))
    assert not half.supports(WINDOWS)


def test_pictures_of_another_size_are_refused(scores: Path) -> None:
    with pytest.raises(RequestError, match=r"x_NCHW should be float32 of shape"):
        OpenVinoRuntime(scores).logits(np.zeros((1, 3, 14, 14), np.float32))


# ---- as a sweep


def half_sweeps(sweeps: SweepAutotuner) -> list[str]:
    return [backend.name for backend in sweeps.candidates(WINDOWS, precision="half")]


@in_bfloat16
def test_graphs_beside_a_network_and_graphs_alone_sweep_in_half_by_openvino_first(
    scores: Path, exported: GraphCache
) -> None:
    graphs = GraphSet((OnnxRuntime(scores, providers="cpu"),))
    assert half_sweeps(torch_sweeps(small(), graph_backends(graphs))) == [NAME, "torch:bfloat16"]
    embedding = OnnxRuntime(exported(small(), "embedding"), providers="cpu")
    model = GraphModel(small().spec, GraphSet((embedding,)), embedding, "graphs:here")
    assert half_sweeps(graph_sweeps(model)) == [NAME]


def test_without_openvino_the_backends_are_those_of_before(scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    graphs = GraphSet((OnnxRuntime(scores, providers="cpu"),))
    assert half_sweeps(torch_sweeps(small(), graph_backends(graphs))) == ["torch:bfloat16"]


@in_bfloat16
def test_a_graph_that_was_replaced_is_refused_and_one_that_is_gone_is_not_offered(scores: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.onnx"
    path.write_bytes(scores.read_bytes())
    opened = OnnxRuntime(path, providers="cpu")
    (half,) = openvino_sweeps(opened)
    path.write_bytes(changed(scores, weights_sha256="1" * 64))
    assert half.supports(WINDOWS)
    forward = ForwardPass(small(), pictures(1), sweeps=SweepAutotuner([*graph_backends(GraphSet((opened,)))]))
    with pytest.raises(ModelError, match=f"{'1' * 64}.*{'0' * 64}"):
        run("occlusion", forward, [1], {"window": 3, "stride": 3, "precision": "half"})
    path.unlink()
    assert not half.supports(WINDOWS)


@in_bfloat16
def test_the_stated_deviations_are_the_largest_to_expect_from_the_sample(scores: Path) -> None:
    model, x_NCHW, options = small(), pictures(1), {"window": 3, "stride": 3}
    onnx_runtime = OnnxRuntime(scores, providers="cpu")
    (half,) = openvino_sweeps(onnx_runtime)
    sweeps = SweepAutotuner([*torch_sweeps(model).backends[:1], half])
    sweeps._seconds[half, 3] = 0.0  # known to be the faster one
    result = run("occlusion", ForwardPass(model, x_NCHW, sweeps=sweeps), [1], options | {"precision": "half"})
    assert result.meta.runtime == NAME
    full = run("occlusion", ForwardPass(model, x_NCHW), [1], options)

    copies_WCHW = np.repeat(x_NCHW, 16, axis=0)
    for copy_CHW, (top, left) in zip(copies_WCHW, WINDOWS.corners, strict=True):
        copy_CHW[:, top : top + 3, left : left + 3] = 0
    expected_W = truth(copies_WCHW)[:, 1]
    half_W = OpenVinoRuntime(scores, precision="half").logits(copies_WCHW)[:, 1]
    sample = [2, 6, 10, 14]
    difference_P = (expected_W - half_W)[sample].astype(np.float64)
    # A sixteenth of normally distributed numbers lies beyond 1.8627 standard deviations.
    error = 1.8627 * math.sqrt(((difference_P - difference_P.mean()) ** 2).sum() / 3)
    np.testing.assert_allclose(result.extras["half_deviation_N"], [error / np.abs(expected_W[sample]).max()], rtol=0.01)
    largest = np.abs(result.extras["grid_NRQ"]).max()
    np.testing.assert_allclose(result.extras["half_drop_deviation_N"], [error / largest], rtol=0.01)
    # And that is how far the map is from the one in float32.
    assert error / 2 < np.abs(result.extras["grid_NRQ"] - full.extras["grid_NRQ"]).max() < 2 * error
