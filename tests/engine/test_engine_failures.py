"""What goes wrong in one row stays in that row, has the right status, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import galleries
import numpy as np
import pytest
import torch
from engines import LABELS, SIDE, Tripwire, counted, engine, replied, request, small_gallery, values
from torch import Tensor

from convlens.engine.engine import Engine, EngineOptions
from convlens.errors import (
    ConvLensError,
    GalleryError,
    ModelError,
    OutOfMemoryError,
    RequestError,
    TargetError,
)
from convlens.protocol.requests import Request

GRADIENTS = ["saliency", "guided_backprop"]


def spoil(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    """NaN for the marked rows."""
    factor_N = torch.ones(len(x_NCHW)).masked_fill(marked_N, torch.nan)
    return x_NCHW * factor_N[:, None, None, None]


def explode(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    """An exception that no library knows, for batches with a marked row."""
    if marked_N.any():
        raise ZeroDivisionError("a marked row")
    return x_NCHW


def explode_backwards(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    if x_NCHW.requires_grad and marked_N.any():
        x_NCHW = x_NCHW * 1.0
        x_NCHW.register_hook(lambda grad: explode(grad, marked_N))
    return x_NCHW


def run_out(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    """Room for one picture at a time, and none for a marked one."""
    if len(x_NCHW) > 1 or marked_N.any():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB")
    return x_NCHW


def run_out_on_the_cpu(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    if marked_N.any():
        torch.empty(1 << 52)
    return x_NCHW


def run_out_backwards(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    """Room for all forwards, but for one picture's backward at a time."""
    if x_NCHW.requires_grad:
        x_NCHW = x_NCHW * 1.0
        x_NCHW.register_hook(lambda grad: run_out(grad, marked_N))
    return x_NCHW


def mixed(**params: Any) -> list[Request]:
    """Two innocent rows of each kind, the marked one (seed 9) among them."""
    return [
        request(0, methods=GRADIENTS),
        request(1),
        request(9, marked=True, **params),
        request(2, methods=["saliency", {"method": "occlusion", "options": {"window": 24, "stride": 24}}]),
        request(3, topk=2),
    ]


def assert_neighbours_unharmed(answers: list[Any], requests: list[Request]) -> None:
    healthy = engine()
    for n, answer in enumerate(answers):
        if n == 2:
            continue
        (expected,) = healthy.run([requests[n]])
        assert [one.index for one in replied(answer).predictions] == [one.index for one in expected.predictions]
        for one in expected.explanations:
            # As loose as a batch's other order of adding.
            np.testing.assert_allclose(values(answer, one.id), one.result.values_NCHW[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("params", [{}, {"methods": GRADIENTS}], ids=["predicted", "explained"])
@pytest.mark.parametrize(
    ("fault", "status", "type_", "message"),
    [
        (spoil, 500, ModelError, "NaN or infinite for this image"),
        (explode, 500, ConvLensError, "internal error"),
        (run_out, 507, OutOfMemoryError, "not enough memory"),
        (run_out_on_the_cpu, 507, OutOfMemoryError, "not enough memory"),
    ],
)
def test_a_row_that_the_network_fails_on_leaves_its_neighbours_alone(
    fault: Callable[[Tensor, Tensor], Tensor], status: int, type_: type, message: str, params: dict[str, Any]
) -> None:
    requests = mixed(**params)
    answers = engine(counted(Tripwire(fault))).run(requests)
    assert type(answers[2]) is type_
    assert answers[2].status == status
    assert message in answers[2].message
    assert_neighbours_unharmed(answers, requests)


@pytest.mark.parametrize(
    ("fault", "status"), [(explode_backwards, 500), (run_out_backwards, 507)], ids=["an exception", "no memory"]
)
def test_a_row_that_fails_in_the_backward_pass_leaves_its_neighbours_alone(
    fault: Callable[[Tensor, Tensor], Tensor], status: int
) -> None:
    requests = mixed(methods=GRADIENTS)
    answers = engine(counted(Tripwire(fault))).run(requests)
    assert isinstance(answers[2], ConvLensError)
    assert answers[2].status == status
    assert_neighbours_unharmed(answers, requests)


def test_a_batch_too_big_for_the_memory_is_answered_one_by_one() -> None:
    requests = [request(n, methods=["saliency"], target=n) for n in range(4)] + [request(5), request(6)]
    module = counted(Tripwire(run_out))
    answers = engine(module).run(requests)
    assert sorted(module.batches) == [1] * 6 + [2, 4]
    for answer, expected in zip(answers[:4], engine().run(requests)[:4], strict=True):
        np.testing.assert_allclose(values(answer, "saliency"), values(expected, "saliency"), atol=1e-6)
    assert all(replied(answer).predictions for answer in answers)


def test_a_fault_is_logged_with_its_traceback_and_not_told_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    (answer,) = engine(counted(Tripwire(explode))).run([request(9, marked=True)])
    assert isinstance(answer, ConvLensError)
    assert "marked" not in answer.message
    assert "ZeroDivisionError: a marked row" in caplog.text


@pytest.mark.parametrize("fault", [explode, explode_backwards, run_out, spoil])
def test_after_a_failure_the_model_is_as_it_was(fault: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = counted(Tripwire(fault))
    live = engine(module)
    (before,) = live.run([request(1)])
    hooks = [len(part._forward_hooks) + len(part._backward_hooks) for part in module.modules()]
    live.run(mixed(methods=[*GRADIENTS, "occlusion", "grad_cam", "smoothgrad"]))
    (after,) = live.run([request(1)])
    assert replied(after).predictions == replied(before).predictions
    assert [len(part._forward_hooks) + len(part._backward_hooks) for part in module.modules()] == hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert not module.training


# --- requests that cannot be honoured ---------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], type, str, str]] = [
    ({"target": 6, "methods": ["saliency"]}, TargetError, "target", "no class 6; there are 0..5"),
    ({"target": 10**30, "methods": ["saliency"]}, TargetError, "target", "no class 1000"),
    (
        {"methods": ["saliency", {"method": "occlusion", "target": "crane"}]},
        TargetError,
        "methods.1.target",
        "2 classes are labelled 'crane': 0 (crane), 3 (crane); give the index",
    ),
    ({"target": "CARDIGAN", "methods": ["saliency"]}, TargetError, "target", "1 (Cardigan), 2 (cardigan)"),
    ({"target": "tigercat", "methods": ["saliency"]}, TargetError, "target", "did you mean tiger cat?"),
    ({"target": "4", "methods": ["saliency"]}, TargetError, "target", "no class labelled '4'"),
    ({"target": "no\nsuch", "methods": ["saliency"]}, TargetError, "target", "'no\\nsuch'"),
    ({"methods": ["salience"]}, RequestError, "methods.0.method", "did you mean saliency?"),
    (
        {"methods": [{"method": "occlusion", "options": {"window": 8, "stride": 9}}]},
        RequestError,
        "methods.0.options.stride",
        "stride=9 with window=8 would skip pixels",
    ),
    ({"methods": ["saliency", "neighbours"]}, GalleryError, "methods.1.method", "no gallery"),
    ({"neighbours": 3}, GalleryError, "method", "no gallery"),
]


@pytest.mark.parametrize(("params", "type_", "field", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_a_request_that_cannot_be_honoured_is_refused_alone(
    params: dict[str, Any], type_: type, field: str, message: str
) -> None:
    requests = mixed(**params)
    answers = engine().run(requests)
    assert type(answers[2]) is type_
    assert answers[2].status == 422
    assert message in answers[2].message
    assert answers[2].field == field
    assert_neighbours_unharmed(answers, requests)


def test_more_neighbours_than_the_gallery_holds_are_refused_for_the_row_that_asked(tmp_path: Path) -> None:
    live = engine(gallery=small_gallery(tmp_path / "gallery", 6))
    answers = live.run([request(0, neighbours=6), request(1, neighbours=7), request(2, methods=["neighbours"])])
    assert isinstance(answers[1], RequestError)
    assert "the gallery holds 6 images; use 1..6" in answers[1].message
    assert [len(replied(answers[n]).explanations[0].result.neighbours_NM[0]) for n in (0, 2)] == [6, 5]


@pytest.mark.parametrize(
    ("target", "index"),
    [("tiger cat", 4), ("TIGER CAT", 4), ("Cardigan", 1), ("cardigan", 2), (3, 3), (0, 0), ("line\nbreak", 5)],
)
def test_a_target_is_a_label_or_an_index(target: int | str, index: int) -> None:
    (answer,) = engine().run([request(0, methods=["saliency"], target=target)])
    (one,) = replied(answer).explanations
    assert one.result.target_N.tolist() == [index]
    assert one.target_label == LABELS[index]


# --- the budget -------------------------------------------------------------------------------------------------------


def windows(stride: int) -> int:
    """Of 8 pixels over the picture's side, counted out; the last one flush with the edge."""
    starts = {min(n * stride, SIDE - 8) for n in range(SIDE)}
    return len(starts) ** 2


@pytest.mark.parametrize("stride", [8, 3, 1])
def test_a_sweep_is_refused_before_it_starts_when_it_costs_more_than_the_budget(stride: int) -> None:
    sweep = request(0, methods=[{"method": "occlusion", "options": {"window": 8, "stride": stride}}])
    cost = windows(stride)
    (enough,) = engine(max_cost=cost).run([sweep])
    assert replied(enough)
    module = counted()
    (refused,) = engine(module, max_cost=cost - 1).run([sweep])
    assert isinstance(refused, RequestError)
    assert f"costs about {cost} forward passes and {cost - 1} are allowed" in refused.message
    assert refused.field == ("methods" if stride == 8 else "methods.0.options.stride")  # 8 is the largest there is
    assert module.batches == []


def test_the_budget_is_for_all_methods_of_a_request_together() -> None:
    noisy = {"method": "smoothgrad", "options": {"samples": 10}}
    twice = [noisy, {**noisy, "id": "again"}]
    live = engine(max_cost=60)
    answers = live.run([request(0, methods=twice), request(0, methods=[*twice, "saliency"])])
    assert replied(answers[0])
    assert isinstance(answers[1], RequestError)


# --- engines that must not start --------------------------------------------------------------------------------------


def test_a_gallery_of_other_weights_is_refused_at_once(tmp_path: Path) -> None:
    live = engine()
    other = replace(live.model, spec=replace(live.model.spec, weights_sha256="f" * 64))
    with pytest.raises(GalleryError, match=f"weights {galleries.SHA[:12]}, but the model has weights ffffffffffff"):
        Engine(other, gallery=small_gallery(tmp_path / "gallery"))


def test_default_methods_that_do_not_exist_are_refused_at_once() -> None:
    with pytest.raises(RequestError, match="no method 'salience'"):
        engine(default_methods=("salience",))


def test_default_neighbours_without_a_gallery_are_refused_at_once() -> None:
    with pytest.raises(GalleryError, match="no gallery"):
        engine(default_methods=("saliency", "neighbours"))


def test_a_model_in_training_mode_answers_nobody() -> None:
    module = counted()
    live = Engine(engine(module).model, options=EngineOptions())
    module.train()
    answers = live.run([request(0), request(1, methods=["saliency"])])
    assert all(isinstance(answer, ModelError) and "training mode" in answer.message for answer in answers)
    assert module.batches == []
