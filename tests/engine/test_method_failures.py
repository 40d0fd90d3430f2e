"""A method that the model cannot do leaves the request its predictions and its other methods."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from engines import Counted, counted, engine, replied, request, values
from torch import Tensor

from convlens.engine.batch import RequestRecord
from convlens.errors import ConvLensError, RequestError, UnsupportedModelError
from convlens.protocol.params import parse_params
from convlens.protocol.responses import dumps, from_json, to_json
from convlens.serving.telemetry import samples

SWEEP = {"method": "occlusion", "options": {"window": 8, "stride": 8}}
BOTH = ["saliency", "guided_backprop", SWEEP]


class Smooth(Counted):
    """The same network with SiLU, for which guided backprop is not defined."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = torch.nn.functional.silu(self.first(x_NCHW))
        return self.head(torch.nn.functional.silu(self.second(x)).mean((2, 3)))


class WithoutGradients(Counted):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x_NCHW)


class ThroughNumpy(Counted):
    """Fails where a gradient is recorded, before there is a prediction."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(x_NCHW.numpy() * 1.0))


class FaultyInBatches(Counted):
    """Fails with an exception of its own wherever several images are in a batch, as samples are."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if len(x_NCHW) > 1:
            raise ZeroDivisionError("several images")
        return super().forward(x_NCHW)


def made(kind: type[Counted]) -> Counted:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return kind().eval()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_method_that_is_not_defined_for_the_network_is_left_out_with_the_reason(position: int) -> None:
    asked = ["saliency", SWEEP]
    asked.insert(position, "guided_backprop")
    live = engine(made(Smooth))
    (answer,), (expected,) = live.run([request(0, methods=asked)]), live.run([request(0, methods=["saliency", SWEEP])])
    reply = replied(answer)
    assert [item.id for item in reply.explanations] == ["saliency", "occlusion"]
    for name in ("saliency", "occlusion"):
        np.testing.assert_allclose(values(reply, name), values(expected, name), atol=1e-7)
    assert reply.predictions == replied(expected).predictions
    (warning,) = set(reply.warnings) - set(replied(expected).warnings)
    assert warning.startswith("guided_backprop is left out: guided_backprop is defined for ReLU networks only")
    assert "SiLU" in warning


@pytest.mark.parametrize("kind", [WithoutGradients, ThroughNumpy])
def test_without_gradients_predictions_and_sweeps_are_answered(kind: type[Counted]) -> None:
    (answer,), (expected,) = (engine(made(each)).run([request(0, methods=BOTH)]) for each in (kind, Counted))
    reply = replied(answer)
    assert [item.id for item in reply.explanations] == ["occlusion"]
    np.testing.assert_allclose(values(reply, "occlusion"), values(expected, "occlusion"), atol=1e-6)
    assert [item.index for item in reply.predictions] == [item.index for item in replied(expected).predictions]
    left_out = [line.partition(" is left out: ")[0] for line in reply.warnings if " is left out: " in line]
    assert left_out == ["saliency", "guided_backprop"]


@pytest.mark.parametrize("methods", [["guided_backprop"], ["guided_backprop", "deconvnet"]], ids=["one", "two"])
def test_where_no_method_gives_anything_the_answer_is_the_error(methods: list[str]) -> None:
    (answer,) = engine(made(Smooth)).run([request(0, methods=methods)])
    assert isinstance(answer, UnsupportedModelError)
    assert answer.status == 422
    assert "guided_backprop is defined for ReLU networks only" in answer.message


def test_the_default_methods_are_answered_as_far_as_the_network_allows() -> None:
    live = engine(made(Smooth), default_methods=("guided_backprop", "saliency"))
    (answer,) = live.run([request(0, explain=True)])
    assert [item.id for item in replied(answer).explanations] == ["saliency"]


def test_a_neighbour_that_asks_for_what_the_network_can_do_gets_no_warning() -> None:
    live = engine(made(Smooth))
    answers = live.run([request(0, methods=BOTH), request(1, methods=["saliency"]), request(2)])
    assert ["left out" in " ".join(replied(answer).warnings) for answer in answers] == [True, False, False]
    (alone,) = live.run([request(1, methods=["saliency"])])
    np.testing.assert_allclose(values(answers[1], "saliency"), values(alone, "saliency"), rtol=1e-4, atol=1e-6)


def test_what_the_client_can_mend_stays_an_error_of_the_whole_request() -> None:
    wrong = {"method": "grad_cam", "options": {"layer": "secnd"}}
    (answer,) = engine().run([request(0, methods=["saliency", wrong])])
    assert isinstance(answer, RequestError)
    assert (answer.status, answer.field) == (422, "methods.1.options.layer")
    assert "did you mean second?" in answer.message


def test_an_internal_error_in_one_method_leaves_the_others() -> None:
    noisy = {"method": "smoothgrad", "options": {"samples": 5}}
    (answer,) = engine(made(FaultyInBatches)).run([request(0, methods=["saliency", noisy])])
    reply = replied(answer)
    assert [item.id for item in reply.explanations] == ["saliency"]
    (warning,) = [line for line in reply.warnings if "left out" in line]
    assert warning == (
        "smoothgrad is left out: internal error while answering this request; the server's log has the details"
    )


@pytest.mark.parametrize("methods", [[{"method": "smoothgrad", "options": {"samples": 5}}, "saliency"], ["smoothgrad"]])
def test_to_the_user_of_the_process_an_internal_error_is_told_in_a_sentence(methods: list[object]) -> None:
    (answer,) = engine(made(FaultyInBatches), shows_details=True).run([request(0, methods=methods)])
    said = answer.message if isinstance(answer, ConvLensError) else replied(answer).warnings[-1]
    assert "internal error: ZeroDivisionError: several images (in forward, test_method_failures.py:" in said
    assert "server's log" not in said


def test_a_reply_without_one_of_its_methods_passes_through_its_json() -> None:
    (answer,) = engine(made(Smooth)).run([request(0, methods=["saliency", "guided_backprop"])])
    reply = replied(answer)
    body = to_json(reply, parse_params({"methods": ["saliency", "guided_backprop"]}))
    assert from_json(json.loads(dumps(body))).warnings == reply.warnings


def test_metrics_count_a_method_that_was_left_out_by_its_own_error() -> None:
    records: list[RequestRecord] = []
    engine(made(Smooth)).run([request(0, methods=["saliency", "guided_backprop"])], on_row=records.append)
    counted_by = {
        sample.labels: sample.value for sample in samples(records) if sample.metric.endswith("requests_total")
    }
    assert counted_by == {("saliency", "200"): 1, ("guided_backprop", "422"): 1}
    outcomes = {sample.labels for sample in samples(records) if sample.metric == "convlens_seconds"}
    assert outcomes == {("saliency", "answered"), ("guided_backprop", "refused")}
    assert records[0].error is None


@pytest.mark.parametrize("make", [lambda: counted(), lambda: made(Smooth)], ids=["ReLU", "SiLU"])
def test_the_model_is_as_it_was(make: Callable[[], Counted]) -> None:
    module = make()
    engine(module).run([request(0, methods=BOTH)])
    assert not any(part._forward_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())
