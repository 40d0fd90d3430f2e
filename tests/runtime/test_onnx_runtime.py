"""The runtime of exported graphs: what it refuses, and that it answers as torch does wherever torch would."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
import torch
from graph_cache import GraphCache
from onnx import TensorProto, helper
from torch import nn

from convlens import ForwardPass, run
from convlens.errors import ModelError, RequestError
from convlens.explain import torch_sweeps
from convlens.explain.onnx_forward import graph_backends
from convlens.models import Classifier
from convlens.runtime import onnx_session
from convlens.runtime.graph_set import GraphSet
from convlens.runtime.onnx_runtime import OnnxRuntime

CPU_NAME = "onnxruntime:CPUExecutionProvider"


def small() -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(nets.Sequential(nn.ReLU()), classes=3, crop=12)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 12, 12)).astype(np.float32)


def in_torch(x_NCHW: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return small().module(torch.tensor(x_NCHW)).numpy()


@pytest.fixture(scope="module")
def scores(exported: GraphCache) -> Path:
    return exported(small(), "scores")


def changed(path: Path, **entries: str) -> bytes:
    """The graph with other metadata; an empty entry is left out."""
    graph = onnx.load(path)
    kept = {entry.key: entry.value for entry in graph.metadata_props}
    kept |= {f"convlens.{key}": value for key, value in entries.items()}
    del graph.metadata_props[:]
    helper.set_model_props(graph, {key: value for key, value in kept.items() if value})
    return graph.SerializeToString()


def contract_with(path: Path, **fields: Any) -> str:
    (held,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == "convlens.contract")
    return json.dumps(json.loads(held) | fields)


# ---- what it answers


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x,
        lambda x: x.astype(np.float64),
        lambda x: torch.tensor(x),
        lambda x: torch.tensor(x).to(memory_format=torch.channels_last),
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: np.flip(x, 0).copy()[::-1],
    ],
    ids=["float32", "float64", "torch", "channels last", "with gradient", "negative strides"],
)
def test_pictures_may_come_as_arrays_or_tensors_however_they_lie(scores: Path, given: Any) -> None:
    x_NCHW = pictures(3)
    np.testing.assert_allclose(OnnxRuntime(scores).logits(given(x_NCHW)), in_torch(x_NCHW), atol=1e-6)


def test_a_graph_may_come_as_bytes(scores: Path) -> None:
    runtime = OnnxRuntime(scores.read_bytes())
    np.testing.assert_allclose(runtime.logits(pictures(2)), in_torch(pictures(2)), atol=1e-6)


def test_occlusion_by_onnx_is_occlusion_by_torch_and_says_who_answered(scores: Path) -> None:
    x_NCHW, options = pictures(2), {"window": 5, "stride": 3, "fill": 0.5}
    by_torch = run("occlusion", ForwardPass(small(), x_NCHW), [0, 2], options)
    ways = graph_backends(GraphSet((OnnxRuntime(scores, providers="cpu"),)))
    forward = ForwardPass(small(), x_NCHW, sweeps=torch_sweeps(small(), ways))
    by_onnx = run("occlusion", forward, [0, 2], options)
    np.testing.assert_allclose(by_onnx.values_NCHW, by_torch.values_NCHW, atol=1e-5)
    assert by_onnx.meta.runtime == CPU_NAME


def test_outputs_stay_on_the_device_where_asked(scores: Path) -> None:
    runtime = OnnxRuntime(scores)
    found = runtime.run_on_device(torch.tensor(pictures(2)).to(runtime.device))
    assert found["logits_NK"].device == runtime.device
    np.testing.assert_allclose(found["logits_NK"].cpu(), in_torch(pictures(2)), atol=1e-6)


def test_threads_do_not_see_each_others_pictures(scores: Path) -> None:
    runtime = OnnxRuntime(scores, threads=1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: runtime.logits(pictures(1 + seed % 3, seed)), range(64)))
    for seed, logits_NK in enumerate(found):
        np.testing.assert_allclose(logits_NK, in_torch(pictures(1 + seed % 3, seed)), atol=1e-6)


def test_the_library_does_not_load_onnxruntime_until_it_is_used() -> None:
    code = "import sys, convlens, convlens.explain, convlens.engine; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


# ---- what it refuses


@pytest.mark.parametrize("tf32", [False, True])
def test_a_session_on_a_gpu_is_told_whether_to_round_to_tf32(tf32: bool) -> None:
    # Its own default is to round; without a GPU no such session opens.
    assert onnx_session._provider_settings(onnx_session.CUDA, 0, None, tf32)["use_tf32"] == str(int(tf32))


def test_a_graph_of_other_weights_is_refused_with_both_hashes(scores: Path) -> None:
    runtime = OnnxRuntime(scores)
    runtime.require_weights("0" * 64)
    with pytest.raises(ModelError, match=f"{'0' * 64}.*{'1' * 64}"):
        runtime.require_weights("1" * 64)


def test_a_graph_without_a_contract_is_refused(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "foreign", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "f.onnx")
    with pytest.raises(ModelError, match=r"f\.onnx was not exported by ConvLens"):
        OnnxRuntime(tmp_path / "f.onnx")


def test_another_format_version_is_refused(scores: Path) -> None:
    with pytest.raises(ModelError, match="format version '99'; this ConvLens reads 1"):
        OnnxRuntime(changed(scores, format="99"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "poetry"}, "damaged at 'kind'"),
        ({"mean": "grey"}, "damaged at 'mean'"),
        ({"outputs": []}, "does not keep its contract"),
        ({"inputs": [{"name": "x_NCHW", "shape": ["N", 3, 99, 99], "dtype": "float32"}]}, "does not keep its contract"),
    ],
)
def test_a_damaged_contract_is_refused(scores: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        OnnxRuntime(changed(scores, contract=contract_with(scores, **fields)))


def test_a_contract_that_is_no_json_is_refused(scores: Path) -> None:
    with pytest.raises(ModelError, match="contract is damaged"):
        OnnxRuntime(changed(scores, contract="{"))


def test_a_file_that_is_no_graph_is_refused(scores: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(scores.read_bytes()[:200])
    for path in (tmp_path / "cut.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(ModelError, match=rf"{path.name} cannot be opened by ONNX Runtime"):
            OnnxRuntime(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_cuda_without_a_gpu_is_an_error_and_no_fall_back(scores: Path) -> None:
    with pytest.raises(ModelError, match="CUDAExecutionProvider was asked for"):
        OnnxRuntime(scores, providers="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_auto_is_the_cpu_without_a_gpu_and_says_so(scores: Path) -> None:
    assert OnnxRuntime(scores, providers="auto").name == CPU_NAME


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"providers": "tpu"}, "no provider 'tpu'; there are: auto, cpu, cuda"),
        ({"providers": "cpu", "threads": 0}, "threads=0"),
        ({"providers": "cpu", "memory_limit_bytes": 1 << 30}, "leave it out on the CPU"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(scores: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        OnnxRuntime(scores, **options)


@pytest.mark.parametrize(
    "x_NCHW",
    [
        np.zeros((1, 3, 12, 13), np.float32),
        np.zeros((3, 12, 12), np.float32),
        np.zeros((1, 3, 12, 12), np.uint8),
        np.zeros((0, 3, 12, 12), np.float32),
    ],
    ids=["other size", "no batch", "bytes", "none"],
)
def test_pictures_that_do_not_fit_are_refused(scores: Path, x_NCHW: np.ndarray) -> None:
    with pytest.raises(RequestError, match=r"should be float32 of shape \('N', 3, 12, 12\); got|no images"):
        OnnxRuntime(scores).logits(x_NCHW)


def test_a_graph_is_asked_only_for_what_it_gives(scores: Path) -> None:
    runtime = OnnxRuntime(scores)
    with pytest.raises(ModelError, match="kind 'scores' does not give embedding_ND"):
        runtime.embeddings(pictures(1))
    with pytest.raises(ModelError, match="needs a graph of kind 'occlusion'; the given one is of kind 'scores'"):
        runtime.sweep(pictures(1)[0], 0)
    with pytest.raises(ModelError, match="needs a graph of kind 'features'"):
        runtime.features(pictures(1))
