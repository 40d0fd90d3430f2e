"""Sweep backends: which is used, several window sizes, half precision, progress, too little memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convlens.errors import OutOfMemoryError, RequestError
from convlens.explain import ForwardPass, run, torch_sweeps
from convlens.explain.sweeps.autotune import HalfPrecisionScorer, SweepAutotuner
from convlens.explain.sweeps.backends import BatchedSweep, SweepRequest
from convlens.explain.sweeps.windows import Windows
from convlens.models import Classifier, load
from convlens.types import Attribution, Step

SIDE = 12


def convolutional() -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(nets.Sequential(nn.ReLU()), classes=3, crop=SIDE)


def linear() -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(nets.Linear(SIDE, 3), classes=3, crop=SIDE)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


class Delayed:
    """The network by torch, a while later; ``seconds`` may be changed."""

    def __init__(self, name: str, module: nn.Module, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self._module = module
        self.pictures = 0

    def logits(self, x_NCHW: Any) -> np.ndarray:
        time.sleep(self.seconds)
        self.pictures += len(x_NCHW)
        with torch.no_grad():
            return self._module(torch.as_tensor(x_NCHW)).numpy()


def swept(model: Classifier, x_NCHW: np.ndarray, sweeps: SweepAutotuner | None = None, **options: Any) -> Attribution:
    result = run("occlusion", ForwardPass(model, x_NCHW, sweeps=sweeps), [1] * len(x_NCHW), options)
    assert isinstance(result, Attribution)
    return result


# ---- which backend


def test_each_backend_is_used_once_and_then_the_fastest() -> None:
    model = convolutional()
    slow, quick, middling = (
        Delayed(name, model.module, s) for name, s in (("slow", 0.2), ("quick", 0.0), ("mid", 0.1))
    )
    sweeps = SweepAutotuner([BatchedSweep(scorer) for scorer in (slow, quick, middling)])
    used = [swept(model, pictures(1), sweeps, window=6, stride=6).meta.runtime for _ in range(5)]
    assert used == ["slow", "quick", "mid", "quick", "quick"]
    # Nothing was computed just to be timed: four windows a sweep.
    assert [scorer.pictures for scorer in (slow, quick, middling)] == [4, 12, 4]


def test_a_backend_that_has_become_slow_is_no_longer_used() -> None:
    model = convolutional()
    first, second = Delayed("first", model.module, 0.0), Delayed("second", model.module, 0.1)
    sweeps = SweepAutotuner([BatchedSweep(first), BatchedSweep(second)])
    for _ in range(2):
        swept(model, pictures(1), sweeps, window=6, stride=6)
    first.seconds = 0.3
    used = [swept(model, pictures(1), sweeps, window=6, stride=6).meta.runtime for _ in range(3)]
    assert used == ["first", "second", "second"]


def test_all_rows_of_a_call_use_the_same_backend() -> None:
    model = convolutional()
    sweeps = SweepAutotuner([BatchedSweep(Delayed(name, model.module, 0.0)) for name in ("one", "other")])
    assert swept(model, pictures(3), sweeps, window=6, stride=6).meta.runtime == "one"


def test_meta_names_the_backend() -> None:
    meta = swept(convolutional(), pictures(1), window=6, stride=6).meta
    assert (meta.runtime, meta.sweep) == ("torch", "batches")


def test_an_incremental_sweep_without_its_graph_is_refused_with_the_command_that_exports_one() -> None:
    with pytest.raises(RequestError, match=r"export occlusion --strategy incremental --window 6 --stride 3`") as raised:
        swept(convolutional(), pictures(1), window=6, stride=3, strategy="incremental")
    assert raised.value.field == "options.strategy"


class Noted(BatchedSweep):
    """Stands where a graph was to be incremental and is a full sweep, because that is faster."""

    kind, note, strategies = (
        "graph",
        "a full sweep: incremental is expected to be 0.9 times as fast",
        ("full", "incremental"),
    )


def test_where_incremental_is_slower_the_fastest_full_sweep_is_used_with_a_warning() -> None:
    model = convolutional()
    slow, quick = Delayed("graph", model.module, 0.1), Delayed("scores", model.module, 0.0)
    sweeps = SweepAutotuner([Noted(slow), BatchedSweep(quick)])
    metas = [swept(model, pictures(1), sweeps, window=6, stride=6, strategy="incremental").meta for _ in range(4)]
    assert [meta.runtime for meta in metas] == ["graph", "scores", "scores", "scores"]
    assert all(meta.warnings == (Noted.note,) for meta in metas)


# ---- several sizes


def test_several_sizes_give_each_its_own_grid_and_the_mean_of_their_maps() -> None:
    model, x_NCHW = linear(), pictures(2)
    both = swept(model, x_NCHW, window=[4, 6], stride=3, fill=0.5)
    alone = {size: swept(model, x_NCHW, window=size, stride=3, fill=0.5) for size in (4, 6)}
    for size, one in alone.items():
        np.testing.assert_array_equal(both.extras[f"grid_{size}_NRQ"], one.extras["grid_NRQ"])
        np.testing.assert_array_equal(both.extras[f"map_{size}_NHW"], one.values_NCHW[:, 0])
    expected_NCHW = (alone[4].values_NCHW + alone[6].values_NCHW) / 2
    np.testing.assert_allclose(both.values_NCHW, expected_NCHW, rtol=1e-6)
    assert "grid_NRQ" not in both.extras


def test_a_window_size_named_twice_is_refused() -> None:
    with pytest.raises(RequestError, match=r"named twice in \[4, 4\]"):
        swept(linear(), pictures(1), window=[4, 4], stride=2)


def test_a_window_smaller_than_the_stride_is_refused_among_several() -> None:
    with pytest.raises(RequestError, match="stride=5 with window=4"):
        swept(linear(), pictures(1), window=[8, 4], stride=5)


# ---- progress


def test_progress_counts_the_windows_of_all_rows_and_sizes() -> None:
    model, steps = convolutional(), list[Step]()
    forward = ForwardPass(model, pictures(2), on_step=steps.append)
    run("occlusion", forward, [0, 0], {"window": [3, 6], "stride": 3})  # 16 and 9 windows
    assert {step.total for step in steps} == {50}
    assert [step.done for step in steps] == [8, 16, 24, 32, 40, 41, 49, 50]  # eight at a time
    assert {step.stage for step in steps} == {"occlusion"}


# ---- too little memory


class Cramped:
    """The network on a device that holds so many pictures at a time."""

    name = "cramped"

    def __init__(self, module: nn.Module, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self._module, self._most, self._error = module, most, error

    def logits(self, x_NCHW: Tensor) -> np.ndarray:
        if len(x_NCHW) > self._most:
            raise self._error("out of memory")
        with torch.no_grad():
            return self._module(x_NCHW).numpy()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, OutOfMemoryError])
@pytest.mark.parametrize("most", [1, 3, 5])
def test_a_batch_too_large_for_the_memory_is_cut_until_it_fits(most: int, error: type[Exception]) -> None:
    model = convolutional()
    result = swept(
        model, pictures(1), SweepAutotuner([BatchedSweep(Cramped(model.module, most, error))]), window=3, stride=3
    )
    expected = swept(model, pictures(1), window=3, stride=3)
    np.testing.assert_allclose(result.extras["grid_NRQ"], expected.extras["grid_NRQ"], atol=1e-6)


def test_where_not_even_one_image_fits_it_stays_an_error() -> None:
    model = convolutional()
    with pytest.raises(torch.OutOfMemoryError):
        swept(model, pictures(1), SweepAutotuner([BatchedSweep(Cramped(model.module, 0))]), window=6, stride=6)


# ---- half precision


def halves(model: Classifier, half: float, full: float) -> SweepAutotuner:
    """bfloat16 and float32 by torch, either made slower."""

    class Later:
        def __init__(self, scorer: Any, seconds: float) -> None:
            self.name, self.scorer, self.seconds = scorer.name, scorer, seconds

        def logits(self, x_NCHW: Any) -> np.ndarray:
            time.sleep(self.seconds)
            return self.scorer.logits(x_NCHW)

    by_half = Later(HalfPrecisionScorer(model.module, model.device), half)
    by_full = Later(Delayed("full", model.module, 0.0), full)
    return SweepAutotuner([BatchedSweep(by_full), BatchedSweep(by_half, precision="half")])


def test_half_precision_states_how_far_it_is_from_full() -> None:
    model, x_NCHW = convolutional(), pictures(2)
    full = swept(model, x_NCHW, window=3, stride=3)
    half = swept(model, x_NCHW, halves(model, 0.0, 0.2), window=3, stride=3, precision="half")
    assert (half.meta.runtime, half.meta.precision) == ("torch:bfloat16", "half")
    scores_NRQ = full.score_N[:, None, None] - full.extras["grid_NRQ"]
    halved_NRQ = half.score_N[:, None, None] - half.extras["grid_NRQ"]
    real_N = np.abs(halved_NRQ - scores_NRQ).max((1, 2)) / np.abs(scores_NRQ).max((1, 2))
    # Estimated from 4 of the 16 windows; bfloat16 keeps 8 bits.
    assert (half.extras["half_deviation_N"] <= real_N * 1.2).all()
    assert (half.extras["half_deviation_N"] > 1e-5).all()
    assert (real_N < 0.02).all()
    # Drops are small differences of scores, and so off by more.
    lost_N = np.abs(half.extras["grid_NRQ"] - full.extras["grid_NRQ"]).max((1, 2)) / np.abs(
        half.extras["grid_NRQ"]
    ).max((1, 2))
    assert (half.extras["half_drop_deviation_N"] <= lost_N * 1.2).all()
    assert (half.extras["half_drop_deviation_N"] > lost_N / 4).all()
    assert lost_N.max() > 0.1
    (warning,) = half.meta.warnings
    assert f"off by about {half.extras['half_drop_deviation_N'].max():.0%} of the largest drop" in warning


class Shifted:
    """The network, its logits moved by as much for every image."""

    def __init__(self, module: nn.Module, name: str, by: float, seconds: float = 0.0) -> None:
        self.name, self._by, self._delayed = name, by, Delayed(name, module, seconds)

    def logits(self, x_NCHW: Any) -> np.ndarray:
        return self._delayed.logits(x_NCHW) + self._by


def test_what_half_moves_all_scores_by_is_no_drop() -> None:
    model, x_NCHW = convolutional(), pictures(2)
    half = BatchedSweep(Shifted(model.module, "half", 3.0), precision="half")
    sweeps = SweepAutotuner([BatchedSweep(Delayed("full", model.module, 0.1)), half])
    result = swept(model, x_NCHW, sweeps, window=3, stride=3, precision="half")
    assert (result.meta.runtime, result.meta.warnings) == ("half", ())
    expected = swept(model, x_NCHW, window=3, stride=3).extras["grid_NRQ"]
    np.testing.assert_allclose(result.extras["grid_NRQ"], expected, atol=1e-5)
    np.testing.assert_allclose(result.extras["half_drop_deviation_N"], 0.0, atol=1e-4)


def test_of_several_ways_in_half_the_fastest_is_used_and_none_is_tried_twice() -> None:
    model = convolutional()
    full, slow, quick = (Delayed(name, model.module, s) for name, s in (("full", 0.1), ("slow", 0.05), ("quick", 0.0)))
    halves = [BatchedSweep(scorer, precision="half") for scorer in (slow, quick)]
    sweeps, used, computed = SweepAutotuner([BatchedSweep(full), *halves]), [], []
    for _ in range(3):
        used.append(swept(model, pictures(1), sweeps, window=3, stride=3, precision="half").meta.runtime)
        computed.append([scorer.pictures for scorer in (full, slow, quick)])
    assert used == ["quick"] * 3
    # Three tries of 8 windows each at first; then 16 windows in half, and 4 in full to compare them with.
    assert computed == [[28, 24, 40], [32, 24, 56], [36, 24, 72]]


class ByFours(BatchedSweep):
    """In half, by runs of four windows that cost the same however few of them count."""

    fixed_run = 4

    def __init__(self, scorer: Any) -> None:
        super().__init__(scorer, precision="half")


@pytest.mark.parametrize(
    ("window", "windows", "in_half", "in_full"),
    [(4, 9, 8, 3 + 1), (3, 16, 16, 4)],
    ids=["one window over", "none over"],
)
def test_windows_that_would_not_fill_a_run_are_scored_in_full(
    window: int, windows: int, in_half: int, in_full: int
) -> None:
    model, x_NCHW, steps = convolutional(), pictures(1), list[Step]()
    full, half = Delayed("full", model.module, 0.1), Shifted(model.module, "half", 3.0)
    sweeps = SweepAutotuner([BatchedSweep(full), ByFours(half)])
    options = {"window": window, "stride": window, "precision": "half"}
    swept(model, x_NCHW, sweeps, **options)  # both are tried
    counted = full.pictures, half._delayed.pictures
    forward = ForwardPass(model, x_NCHW, sweeps=sweeps, on_step=steps.append)
    result = run("occlusion", forward, [1], options)
    assert isinstance(result, Attribution)
    assert (full.pictures - counted[0], half._delayed.pictures - counted[1]) == (in_full, in_half)
    assert (steps[-1].done, steps[-1].total) == (windows, windows)
    expected = swept(model, x_NCHW, window=window, stride=window).extras["grid_NRQ"]
    np.testing.assert_allclose(result.extras["grid_NRQ"], expected, atol=1e-5)


def test_where_half_is_no_faster_full_precision_is_used_with_a_warning() -> None:
    model, x_NCHW = convolutional(), pictures(1)
    result = swept(model, x_NCHW, halves(model, 0.2, 0.0), window=3, stride=3, precision="half")
    assert (result.meta.runtime, result.meta.precision) == ("full", "float32")
    assert "no faster here" in result.meta.warnings[0]
    assert "ran in float32" in result.meta.warnings[0]
    np.testing.assert_array_equal(result.extras["half_deviation_N"], [0.0])
    expected = swept(model, x_NCHW, window=3, stride=3).extras["grid_NRQ"]
    np.testing.assert_allclose(result.extras["grid_NRQ"], expected, atol=1e-6)


def test_a_model_without_half_precision_warns_and_sweeps_in_full() -> None:
    model = convolutional()
    sweeps = SweepAutotuner([BatchedSweep(Delayed("full", model.module, 0.0))])
    result = swept(model, pictures(1), sweeps, window=6, stride=6, precision="half")
    assert "not available here" in result.meta.warnings[0]


def test_the_model_itself_keeps_its_precision() -> None:
    model = convolutional()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    swept(model, pictures(1), halves(model, 0.0, 0.1), window=6, stride=6, precision="half")
    for name, tensor in model.module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


def test_incremental_sweeps_are_not_made_in_half() -> None:
    with pytest.raises(RequestError, match="works in float32 only"):
        swept(linear(), pictures(1), window=6, stride=6, strategy="incremental", precision="half")


@pytest.mark.parametrize("make", [linear, convolutional])
def test_bfloat16_is_near_float32_on_the_default_backend(make: Callable[[], Classifier]) -> None:
    model = make()
    (half,) = (backend for backend in torch_sweeps(model).backends if backend.precision == "half")
    assert half.name == "torch:bfloat16"
    full = torch_sweeps(model).reference
    windows = Windows(SIDE, SIDE, 4, 4)
    request = SweepRequest(torch.as_tensor(pictures(1)[0]), 2, windows, 0.0, "logit")
    result, expected = (backend.scores_at(request, range(len(windows))) for backend in (half, full))
    np.testing.assert_allclose(result, expected, atol=0.02 * np.abs(expected).max())


def test_the_default_model_in_half_points_at_the_same_place() -> None:
    model = load(device="cpu")
    x_NCHW = nets.photograph("chelsea.png", model.spec)
    options = {"window": 64, "stride": 40}
    full, half = (
        run("occlusion", ForwardPass(model, x_NCHW), [282], options | {"precision": precision})
        for precision in ("float32", "half")
    )
    assert isinstance(full, Attribution)
    assert isinstance(half, Attribution)
    if half.meta.runtime == "torch:bfloat16":
        assert 0 < half.extras["half_deviation_N"][0] < 0.1
    assert np.corrcoef(full.values_NCHW.ravel(), half.values_NCHW.ravel())[0, 1] > 0.95
