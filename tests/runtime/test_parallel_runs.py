"""Runs of a graph side by side: in order, with the same answers, and with nothing left running after an error."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from graph_cache import GraphCache
from torch import nn

from convlens import ForwardPass, run
from convlens.errors import ModelError
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.explain.sweeps.backends import ParallelSweep
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.types import Attribution
from export.exporter import export


def small(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nets.classifier(nets.Sequential(nn.ReLU()), classes=3, crop=12)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def scores(exported: GraphCache) -> Path:
    return exported(small(), "scores")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_logits_side_by_side_are_torch_s_in_order(scores: Path, threads: int) -> None:
    x_NCHW = pictures(11)
    runtime = OnnxRuntime(scores, providers="cpu", threads=threads)
    assert runtime.parallel_runs == threads
    parts = list(runtime.logits_each([lambda few=x_NCHW[n : n + 3]: few for n in range(0, 11, 3)]))
    with torch.no_grad():
        wanted = small().module(torch.tensor(x_NCHW)).numpy()
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    np.testing.assert_allclose(np.concatenate(parts), wanted, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_graph_on_one_core_gives_the_same_run_by_run(scores: Path, threads: int) -> None:
    runtime = OnnxRuntime(scores, providers="cpu", threads=threads)
    alone = runtime.on_one_core()
    assert (alone.threads, alone.parallel_runs, runtime.threads) == (1, 1, threads)
    np.testing.assert_allclose(alone.logits(pictures(5)), runtime.logits(pictures(5)), atol=1e-6)
    calling: set[str] = set()

    def maker() -> np.ndarray:
        calling.add(threading.current_thread().name)
        return pictures(2)

    assert len(list(alone.logits_each([maker] * 3))) == 3
    assert calling == {threading.current_thread().name}


def test_a_graph_that_was_replaced_meanwhile_is_refused(scores: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.onnx"
    path.write_bytes(scores.read_bytes())
    runtime = OnnxRuntime(path, providers="cpu", threads=2)
    other = small(1)
    other = replace(other, spec=replace(other.spec, weights_sha256="1" * 64))
    path.write_bytes(export(other, "scores", tmp_path / "other.onnx").path.read_bytes())
    with pytest.raises(ModelError, match="was replaced by another graph after it was opened; open it again"):
        list(runtime.logits_each([lambda: pictures(1)]))


class ShortOfMemory:
    """As ``OnnxRuntime``, but after some runs there is no memory for more at once."""

    def __init__(self, runtime: OnnxRuntime, after: int) -> None:
        self.name, self.parallel_runs, self.contract = runtime.name, 2, runtime.contract
        self.runtime, self.after, self.alone = runtime, after, 0

    def logits(self, x_NCHW: Any) -> Any:
        self.alone += len(x_NCHW)
        return self.runtime.logits(x_NCHW)

    def logits_each(self, makers: Any) -> Any:
        for n, maker in enumerate(makers):
            if n == self.after:
                raise MemoryError("bad allocation")
            yield self.runtime.logits(maker())


@pytest.mark.parametrize("after", [0, 2])
def test_a_sweep_that_runs_out_of_memory_goes_on_one_run_at_a_time(scores: Path, after: int) -> None:
    scorer = ShortOfMemory(OnnxRuntime(scores, providers="cpu"), after)
    seen: list[int] = []
    options = {"window": 4, "stride": 2}
    forward = ForwardPass(
        small(),
        pictures(1),
        sweeps=SweepAutotuner([ParallelSweep(scorer)]),
        on_step=lambda step: seen.append(step.done),
    )
    found = run("occlusion", forward, [1], options)
    wanted = run("occlusion", ForwardPass(small(), pictures(1)), [1], options)
    assert isinstance(found, Attribution)
    assert isinstance(wanted, Attribution)
    np.testing.assert_allclose(found.extras["grid_NRQ"], wanted.extras["grid_NRQ"], atol=1e-6)
    assert scorer.alone > 0
    assert seen == sorted(seen)
