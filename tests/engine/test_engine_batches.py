"""A batch gives each row what it gets alone, and shares the passes that can be shared."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import Counted, counted, engine, picture, replied, request, small_gallery, values

from convlens import explain, image
from convlens.explain import registry
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.explain.sweeps.backends import BatchedSweep
from convlens.models import Classifier
from convlens.protocol.arrays import ArrayBody
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.protocol.responses import to_json
from convlens.types import Attribution, Neighbourhood, Placement, Reply, Step

SMALL = {"window": 8, "stride": 4}
# Every kind of request at once: no explanation, each need, other targets, other options, the same method twice.
MIXED: list[dict[str, Any]] = [
    {},
    {"topk": 2, "methods": ["saliency"]},
    {"target": 4, "methods": ["guided_backprop", "deconvnet", "saliency"]},
    {"methods": [{"method": "occlusion", "options": SMALL}]},
    {"methods": [{"method": "occlusion", "options": {"window": 6, "stride": 6, "fill": 1.0}}, "saliency"]},
    {"neighbours": 3, "methods": []},
    {"methods": [{"method": "saliency", "target": 0}, {"method": "saliency", "id": "other", "target": 5}]},
    {"methods": ["grad_cam", {"method": "smoothgrad", "options": {"samples": 4, "seed": 9}}, "integrated_gradients"]},
    {
        "methods": [{"method": "saliency", "options": {"score": "probability"}}, "guided_backprop"],
        "target": "tiger cat",
    },
]


def assert_same(actual: Reply, expected: Reply) -> None:
    """To 1e-5 of the largest value: a batch's convolutions add in another order."""
    assert [one.index for one in actual.predictions] == [one.index for one in expected.predictions]
    for one, other in zip(actual.predictions, expected.predictions, strict=True):
        assert one.probability == pytest.approx(other.probability, rel=1e-5)
    assert [(one.id, one.method) for one in actual.explanations] == [
        (one.id, one.method) for one in expected.explanations
    ]
    for one, other in zip(actual.explanations, expected.explanations, strict=True):
        assert_same_result(one.result, other.result)


def assert_same_result(actual: Any, expected: Any) -> None:
    assert actual.options == expected.options
    if isinstance(expected, Neighbourhood):
        assert [n.id for n in actual.neighbours_NM[0]] == [n.id for n in expected.neighbours_NM[0]]
        distances = [[n.distance for n in one.neighbours_NM[0]] for one in (actual, expected)]
        np.testing.assert_allclose(*distances, rtol=1e-5)
        return
    assert actual.target_N.tolist() == expected.target_N.tolist()
    np.testing.assert_allclose(actual.score_N, expected.score_N, rtol=1e-5)
    limit = np.abs(expected.values_NCHW).max()
    np.testing.assert_allclose(actual.values_NCHW, expected.values_NCHW, atol=1e-5 * limit)
    assert limit > 0


@pytest.mark.parametrize("order", [1, -1, 4], ids=["as asked", "backwards", "every fourth first"])
def test_a_batch_of_every_kind_gives_each_row_what_it_gets_alone(order: int, tmp_path: Path) -> None:
    live = engine(gallery=small_gallery(tmp_path / "gallery"))
    requests = [request(n, **params) for n, params in enumerate(MIXED)]
    requests = [requests[order * n % len(requests)] for n in range(len(requests))]
    together = live.run(requests)
    for single, shared in zip(requests, together, strict=True):
        (alone,) = live.run([single])
        assert_same(replied(shared), replied(alone))


def test_each_row_is_explained_for_its_own_target_by_its_own_options() -> None:
    live = engine()
    targets = [4, 1, 5, None]
    answers = live.run([request(7, methods=["saliency"], target=target) for target in targets])
    for answer, target in zip(answers, targets, strict=True):
        assert_saliency(live.model, answer, target)


def assert_saliency(classifier: Classifier, answer: object, target: int | None) -> None:
    """Against the gradient taken straightforwardly, of this picture alone."""
    x = torch.tensor(image.prepare(picture(7), classifier.spec).x_CHW[None], requires_grad=True)
    logits_K = classifier.module(x)[0]
    expected = int(logits_K.argmax()) if target is None else target
    (gradient,) = torch.autograd.grad(logits_K[expected], x)
    one = replied(answer).explanations[0]
    assert isinstance(one.result, Attribution)
    assert one.result.target_N.tolist() == [expected]
    assert one.target_label == classifier.spec.labels[expected]
    np.testing.assert_allclose(values(answer, "saliency"), gradient[0].numpy(), rtol=1e-4, atol=1e-7)


def test_the_same_method_for_two_targets_on_one_picture_gives_two_maps() -> None:
    methods = [{"method": "guided_backprop", "id": str(k), "target": k} for k in range(6) if k != 3]
    live = engine()
    (together,) = live.run([request(0, methods=methods)])
    for one in methods:
        (alone,) = live.run([request(0, methods=[one])])
        np.testing.assert_allclose(values(together, one["id"]), values(alone, one["id"]), atol=1e-7)


def test_probabilities_are_the_softmax_in_float64_of_the_logits() -> None:
    live = engine()
    (answer,) = live.run([request(3, topk=100)])
    predictions = replied(answer).predictions
    x = torch.tensor(image.prepare(picture(3), live.model.spec).x_CHW[None])
    with torch.no_grad():
        logits_K = live.model.module(x)[0]
    np.testing.assert_allclose([one.logit for one in predictions], logits_K.sort(descending=True).values, rtol=1e-5)
    exponentials = [math.exp(one.logit) for one in predictions]
    assert len(predictions) == 6, "topk beyond the number of classes gives all of them"
    assert sum(one.probability for one in predictions) == pytest.approx(1, abs=1e-12)
    for one, exponential in zip(predictions, exponentials, strict=True):
        assert one.probability == pytest.approx(exponential / sum(exponentials), rel=1e-12)
        assert one.label == live.model.spec.labels[one.index]


@pytest.mark.parametrize(
    ("bias", "order"),
    [([0, 1, 1, 0, 1, 0], [1, 2, 4, 0, 3, 5]), ([1] * 6, [0, 1, 2, 3, 4, 5]), ([0, 0, 0, 2, 2, 2], [3, 4, 5, 0, 1, 2])],
)
def test_equal_scores_come_in_the_order_of_their_classes_and_the_first_is_the_one_explained(
    bias: list[float], order: list[int]
) -> None:
    module = counted()
    module.head.weight.data[:] = module.head.weight.data[0].clone()
    module.head.bias.data[:] = torch.tensor(bias)
    (answer,) = engine(module).run([request(topk=6, methods=["saliency"])])
    assert [one.index for one in replied(answer).predictions] == order
    result = replied(answer).explanations[0].result
    assert isinstance(result, Attribution)
    assert result.target_N.tolist() == order[:1]


def test_each_method_of_a_request_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    live, names = engine(max_seconds=60), list[str]()
    asked = request(0, methods=["saliency", {"method": "occlusion", "options": SMALL}], output=["overlay", "heatmap"])
    replied(live.run([asked])[0])  # makes the models of the options, once for all requests
    get = explain.get
    for module in (explain, registry):
        monkeypatch.setattr(module, "get", lambda name: names.append(name) or get(name))
    replied(live.run([asked])[0])
    assert names == ["saliency", "occlusion"]


# --- what is shared ---------------------------------------------------------------------------------------------------


def passes(module: Counted, *requests: Request) -> tuple[list[int], int]:
    """Sizes of the forward batches and the number of backward passes that answering took."""
    for answer in engine(module).run(requests):
        replied(answer)
    return module.batches, len(module.backwards)


def test_predictions_of_a_batch_take_one_forward_without_a_graph_and_no_backward() -> None:
    module = counted()
    assert passes(module, *(request(n) for n in range(5))) == ([5], 0)
    assert module.recorded == [False]


def test_all_rows_of_a_rule_take_one_backward_whatever_their_targets() -> None:
    requests = [request(n, methods=["saliency"], target=n) for n in range(5)]
    assert passes(counted(), *requests) == ([5], 1)


def test_three_rules_take_one_forward_and_a_backward_each() -> None:
    requests = [request(n, methods=["saliency", "guided_backprop", "deconvnet"]) for n in range(4)]
    assert passes(counted(), *requests) == ([4], 3)


def test_a_second_target_of_the_same_rule_takes_a_second_backward() -> None:
    twice = [{"method": "saliency", "id": "a", "target": 0}, {"method": "saliency", "id": "b", "target": 1}]
    assert passes(counted(), request(0, methods=twice), request(1, methods=["saliency"])) == ([2], 2)


def test_rows_without_a_gradient_go_through_a_forward_of_their_own() -> None:
    requests = [request(0), request(1, methods=["saliency"]), request(2), request(3, methods=["guided_backprop"])]
    batches, backwards = passes(counted(), *requests)
    assert sorted(batches) == [2, 2]
    assert backwards == 2


def test_neighbours_take_no_forward_beyond_that_of_the_predictions(tmp_path: Path) -> None:
    module = counted()
    live = engine(module, gallery=small_gallery(tmp_path / "gallery"))
    replied(live.run([request(0, neighbours=2), request(1, neighbours=3, methods=["saliency"])])[0])
    assert sorted(module.batches) == [1, 1]


def test_occlusion_sees_every_window_once_on_the_scorer_it_is_given() -> None:
    class Slow:
        name = "slow"
        pictures = 0

        def logits(self, x_NCHW: Any) -> Any:
            self.pictures += len(x_NCHW)
            with torch.no_grad():
                return live.model.module(x_NCHW).numpy()

    live = engine()
    scorer = Slow()
    live.sweeps = SweepAutotuner([BatchedSweep(scorer)])
    (answer,) = live.run([request(0, methods=[{"method": "occlusion", "options": {"window": 8, "stride": 8}}])])
    assert scorer.pictures == 9
    assert replied(answer).explanations[0].result.meta.runtime == "slow"


def test_each_stage_is_announced_as_it_begins() -> None:
    steps: list[Step] = []
    engine().run([request(0, methods=["saliency", "grad_cam"])], on_step=steps.append)
    assert [step.stage for step in steps] == ["predictions", "saliency", "grad_cam"]


def test_an_empty_batch_has_no_answers() -> None:
    assert engine().run([]) == []


# --- what a reply says ------------------------------------------------------------------------------------------------


def test_a_reply_says_who_answered_and_carries_the_requests_id() -> None:
    live = engine(name="nets", version="2.1")
    (answer,) = live.run([request(request_id="abc-1")])
    reply = replied(answer)
    assert (reply.model_name, reply.model_version, reply.request_id, reply.device) == ("nets", "2.1", "abc-1", "cpu")
    assert reply.weights_sha256 == live.model.spec.weights_sha256
    assert set(reply.timing_ms) == {"prepare", "explain"}
    assert reply.warnings == ()


def test_a_picture_smaller_than_the_models_input_is_answered_with_a_warning() -> None:
    (answer,) = engine().run([Request(picture(size=(30, 20)), parse_params({}))])
    assert replied(answer).warnings == ("the picture is 30×20 pixels, smaller than the model's 24: it was enlarged",)


@pytest.mark.parametrize("output", [[], ["array"], ["overlay"], ["heatmap"], ["heatmap", "overlay"]])
def test_pictures_are_drawn_only_where_asked_for(output: list[str]) -> None:
    (answer,) = engine().run([request(0, methods=["saliency", "guided_backprop", "grad_cam"], output=output)])
    for one in replied(answer).explanations:
        for kind, drawn in (("overlay", one.overlay_png), ("heatmap", one.heatmap_png)):
            assert bool(drawn) == (kind in output)
            assert not drawn or image.decode(drawn).size == (24, 24)


def test_several_threads_with_one_engine_get_what_one_thread_gets() -> None:
    live = engine()
    requests = [[request(n, **MIXED[n]), request(n + 20, methods=["deconvnet"])] for n in (1, 2, 3, 6)]
    expected = [[replied(answer) for answer in live.run(batch)] for batch in requests]
    actual: dict[int, list[Any]] = {}
    threads = [
        threading.Thread(target=lambda n=n: actual.update({n: live.run(requests[n])})) for n in range(len(requests))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for n, batch in enumerate(expected):
        for one, other in zip(actual[n], batch, strict=True):
            assert_same(replied(one), other)


@pytest.mark.parametrize("method", [name for name in explain.available_methods() if name != "neighbours"])
def test_every_method_in_the_registry_can_be_asked_for(method: str) -> None:
    (answer,) = engine().run([request(0, methods=[method])])
    assert values(answer, method).shape[1:] == (24, 24)


def test_in_the_size_of_the_original_map_and_overlay_lie_where_the_model_looked() -> None:
    """The picture is 48 × 24 and the model sees the square in its middle: pixels 12 to 36."""
    wide = picture(3, size=(48, 24))
    same = Request(wide, parse_params({"methods": ["saliency"]}))
    large = Request(wide, parse_params({"methods": ["saliency"], "size": "original"}))
    by_model, by_original = (replied(answer) for answer in engine().run([same, large]))
    assert by_original.placement == Placement((48, 24), (12.0, 0.0, 36.0, 24.0)) == by_model.placement
    body = to_json(by_original, large.params)["explanations"][0]
    placed = ArrayBody(**body["array"]).decode()
    np.testing.assert_array_equal(placed[:, :, 12:36], values(by_model, "saliency"))
    assert not placed[:, :, :12].any() and not placed[:, :, 36:].any()
    overlay = np.asarray(image.decode(by_original.explanations[0].overlay_png))
    assert overlay.shape == (24, 48, 3)
    # Around what the model saw the picture is only dimmed to grey: no colour there, some inside.
    spread = np.ptp(overlay.astype(int), axis=2)
    assert not spread[:, :12].any() and not spread[:, 36:].any()
    assert spread[:, 12:36].max() > 50
