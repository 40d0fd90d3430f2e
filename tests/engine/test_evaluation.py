"""Maps that come with their deletion and insertion curves: right, within the limits, and each row by itself."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import nets
import numpy as np
import pytest
import torch
from engines import (
    LABELS,
    SIDE,
    Tripwire,
    classifier,
    counted,
    engine,
    paused,
    picture,
    replied,
    request,
    small_gallery,
)
from graph_cache import GraphCache
from torch import Tensor

from convlens.engine.batch import RequestRecord
from convlens.engine.engine import Engine
from convlens.errors import DeadlineError, OverloadError, RequestError
from convlens.explain import GraphModel
from convlens.explain.onnx_forward import scores_graph
from convlens.protocol.params import parse_params
from convlens.runtime.graph_set import GraphSet
from convlens.runtime.onnx_runtime import OnnxRuntime
from convlens.types import Evaluation, Explanation, Step

pytestmark = pytest.mark.usefixtures("clock")  # one that moves only where a network pauses
BOTH = ["deletion", "insertion"]
A_PICTURE = 0.02  # seconds


def explained(reply: Any, name: str = "saliency") -> Explanation:
    (found,) = [one for one in replied(reply).explanations if one.id == name]
    return found


def evaluated(reply: Any, name: str = "saliency") -> Evaluation:
    evaluation = explained(reply, name).evaluation
    assert evaluation is not None, replied(reply).warnings
    return evaluation


def assert_same(found: Evaluation, wanted: Evaluation, *, within: float) -> None:
    assert list(found.curves) == list(wanted.curves)
    for kind, curve in wanted.curves.items():
        for name in ("fraction_S", "probability_S", "logit_S"):
            np.testing.assert_allclose(getattr(found.curves[kind], name), getattr(curve, name), atol=within)
        assert found.curves[kind].auc == pytest.approx(curve.auc, abs=within)
    assert replace(found, curves={}) == replace(wanted, curves={})


# --- the curves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, 1, 4])
def test_a_deletion_curve_is_what_plain_torch_says(target: int | None) -> None:
    steps, net = 8, counted()
    asked = {"methods": ["saliency"], "evaluate": {"curves": ["deletion"], "steps": steps}, "output": []}
    (reply,) = engine(net).run([request(3, target=target, **asked)])
    # The model sees the picture as it is, and normalises by a mean of .5 and a deviation of .25.
    pixels_HWC = np.asarray(picture(3), np.float32) / 255
    x_1CHW = torch.from_numpy((pixels_HWC - 0.5) / 0.25).permute(2, 0, 1)[None].requires_grad_()
    logits_K = net(x_1CHW)[0]
    class_ = int(logits_K.argmax()) if target is None else target
    (gradient_1CHW,) = torch.autograd.grad(logits_K[class_], x_1CHW)
    relevance = gradient_1CHW[0].abs().amax(0).flatten()
    assert len(relevance.unique()) == SIDE**2, "no two pixels are equal, so there is one order"
    best_first = relevance.argsort(descending=True)
    probabilities, logits = [], []
    for step in range(steps + 1):
        deleted_1CHW = x_1CHW.detach().clone().reshape(1, 3, -1)
        deleted_1CHW[:, :, best_first[: step * SIDE**2 // steps]] = 0
        with torch.no_grad():
            outputs_K = net(deleted_1CHW.reshape(1, 3, SIDE, SIDE))[0].double()
        logits.append(float(outputs_K[class_]))
        probabilities.append(float(outputs_K.softmax(0)[class_]))
    curve = evaluated(reply).curves["deletion"]
    np.testing.assert_allclose(curve.fraction_S, np.arange(steps + 1) / steps)
    np.testing.assert_allclose(curve.logit_S, logits, atol=1e-5)
    np.testing.assert_allclose(curve.probability_S, probabilities, atol=1e-6)
    for kind, scores in (("logit", logits), ("probability", probabilities)):
        # By the trapezoidal rule: the ends count half.
        mean = (sum(scores) - (scores[0] + scores[-1]) / 2) / steps
        assert curve.auc[kind] == pytest.approx(mean, abs=1e-5)  # type: ignore[index]


def test_both_curves_show_the_whole_image_at_one_end() -> None:
    (reply,) = engine().run([request(1, methods=["saliency", "grad_cam"], evaluate=BOTH, output=[])])
    best = replied(reply).predictions[0]
    for name in ("saliency", "grad_cam"):
        curves = evaluated(reply, name).curves
        for kind, end in (("deletion", 0), ("insertion", -1)):
            curve = curves[kind]  # type: ignore[index]
            assert curve.probability_S[end] == pytest.approx(best.probability, abs=1e-6)
            assert curve.logit_S[end] == pytest.approx(best.logit, abs=1e-5)
            assert len(curve.logit_S) == 23


@pytest.mark.parametrize(
    ("method", "order"), [("saliency", "by the largest absolute value"), ("grad_cam", "by the sum over the channels")]
)
def test_an_evaluation_says_how_it_was_made(method: str, order: str) -> None:
    (reply,) = engine().run([request(1, methods=[method], evaluate={"steps": 5}, output=[])])
    said = evaluated(reply, method)
    assert (said.steps, said.insertion_substrate, said.deletion_substrate, said.seed) == (5, "blur", "mean", 0)
    assert said.order.startswith(order)
    assert set(said.curves) == set(BOTH), "both, where none is named"


def test_each_target_has_curves_of_its_own() -> None:
    methods = [{"method": "saliency", "id": f"of_{target}", "target": target} for target in (0, 1)]
    (reply,) = engine().run([request(2, methods=methods, evaluate=["deletion"], output=[], topk=len(LABELS))])
    for target in (0, 1):
        (wanted,) = [one.logit for one in replied(reply).predictions if one.index == target]
        assert evaluated(reply, f"of_{target}").curves["deletion"].logit_S[0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("asked", [{}, {"methods": ["saliency"]}, {"explain": True}])
def test_nothing_is_evaluated_that_nobody_asked_for(asked: dict[str, Any]) -> None:
    module = counted()
    (reply,) = engine(module).run([request(0, output=[], **asked)])
    assert all(one.evaluation is None for one in replied(reply).explanations)
    (again,) = engine(module).run([request(0, output=[], evaluate=None, **asked)])
    assert all(one.evaluation is None for one in replied(again).explanations)


@pytest.mark.parametrize("at", [0, 2])
def test_curves_do_not_depend_on_what_else_is_in_the_batch(at: int) -> None:
    methods = ["saliency", "grad_cam", {"method": "occlusion", "options": {"window": 8, "stride": 4}}]
    asked = request(5, methods=methods, evaluate=BOTH, output=[])
    others = [request(1), request(2, methods=["saliency"]), request(3, methods=["grad_cam"], evaluate=["insertion"])]
    (alone,) = engine().run([asked])
    together = engine().run([*others[:at], asked, *others[at:]])
    for name in ("saliency", "grad_cam", "occlusion"):
        assert_same(evaluated(together[at], name), evaluated(alone, name), within=1e-5)


def test_graphs_give_the_curves_of_the_network(exported: GraphCache) -> None:
    torch.manual_seed(0)
    net = nets.classifier(nets.Sequential(torch.nn.ReLU()), classes=3, crop=12)
    graphs = [OnnxRuntime(exported(net, kind), providers="cpu") for kind in ("embedding", "saliency")]
    model = GraphModel(net.spec, GraphSet(tuple(graphs)), graphs[0], "graphs:here")
    methods = ["saliency", {"method": "occlusion", "options": {"window": 4, "stride": 3}}]
    asked = request(5, methods=methods, evaluate=BOTH, output=[])
    by_torch, by_graphs = (Engine(each).run([asked])[0] for each in (net, model))
    assert replied(by_graphs).runtime.startswith("onnxruntime")
    for name in ("saliency", "occlusion"):
        assert_same(evaluated(by_graphs, name), evaluated(by_torch, name), within=1e-4)


def test_a_network_with_graphs_makes_its_curves_on_them(exported: GraphCache) -> None:
    torch.manual_seed(0)
    net = nets.classifier(nets.Sequential(torch.nn.ReLU()), classes=3, crop=12)
    graphs = GraphSet((OnnxRuntime(exported(net, "scores"), providers="cpu"),))
    passes: list[int] = []
    asked = request(0, methods=["saliency"], evaluate=BOTH, output=[])
    (by_torch,) = Engine(net).run([asked])
    net.module.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    (by_graphs,) = Engine(net, graphs=graphs).run([asked])
    assert_same(evaluated(by_graphs), evaluated(by_torch), within=1e-4)
    assert max(passes, default=1) == 1  # the image itself; changed images would come in batches


def test_a_graph_in_half_precision_scores_no_masked_images(exported: GraphCache) -> None:
    torch.manual_seed(0)
    net = nets.classifier(nets.Sequential(torch.nn.ReLU()), classes=3, crop=12)
    half = OnnxRuntime(exported(net, "scores", half=True), providers="cpu")
    full = OnnxRuntime(exported(net, "embedding"), providers="cpu")
    assert scores_graph(GraphSet((half,))) is None
    assert scores_graph(GraphSet((half, full))) is full


# --- what has no curves -----------------------------------------------------------------------------------------------


def test_neighbours_are_not_evaluated_and_the_reply_says_why(tmp_path: Any) -> None:
    live = engine(gallery=small_gallery(tmp_path / "gallery"))
    (reply,) = live.run([request(0, methods=["saliency", "neighbours"], evaluate=["deletion"])])
    assert explained(reply, "neighbours").evaluation is None
    assert evaluated(reply).curves
    assert replied(reply).warnings == ("neighbours is not evaluated: it gives no map",)


def test_a_neuron_is_not_evaluated_and_the_reply_says_why() -> None:
    unit = {"method": "saliency", "id": "unit", "target": {"layer": "second", "channel": 4}}
    (reply,) = engine().run([request(0, methods=["saliency", unit], evaluate=["deletion"])])
    assert explained(reply, "unit").evaluation is None
    assert evaluated(reply).curves
    (warning,) = replied(reply).warnings
    assert warning == "unit is not evaluated: the curves are of a class's score, and it explains a neuron"


def test_a_network_without_classes_is_not_evaluated_and_the_reply_says_why() -> None:
    net = classifier(counted())
    live = Engine(replace(net, spec=replace(net.spec, labels=())))
    methods = [{"method": "occlusion", "options": {"window": 8, "stride": 8}}]
    (reply,) = live.run([request(0, methods=methods, evaluate=["deletion"])])
    assert explained(reply, "occlusion").evaluation is None
    assert any("occlusion is not evaluated" in text and "no classes" in text for text in replied(reply).warnings)


def test_evaluating_nothing_is_refused() -> None:
    (error,) = engine().run([request(0, evaluate=["deletion"])])
    assert isinstance(error, RequestError)
    assert error.field == "evaluate"
    assert "name methods, or ask /explanations" in error.message


def test_the_quick_entry_says_where_maps_are_evaluated() -> None:
    live = engine(sweeps_at="nets_sweep")
    answers = live.run([request(0, methods=["saliency"], evaluate=["deletion"]), request(1, methods=["saliency"])])
    assert isinstance(answers[0], RequestError)
    assert answers[0].field == "evaluate"
    assert "answered by the model entry 'nets_sweep'" in answers[0].message
    replied(answers[1])


# --- faults -----------------------------------------------------------------------------------------------------------


def _deleted(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    """Of marked images, those with pixels taken away while the mark is still there."""
    return marked_N & (x_NCHW == 0).all(1).any((1, 2))


def spoil(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    factor_N = torch.ones(len(x_NCHW)).masked_fill(_deleted(x_NCHW, marked_N), torch.nan)
    return x_NCHW * factor_N[:, None, None, None]


def explode(x_NCHW: Tensor, marked_N: Tensor) -> Tensor:
    if _deleted(x_NCHW, marked_N).any():
        raise ZeroDivisionError("a marked row")
    return x_NCHW


@pytest.mark.parametrize(("fault", "message"), [(spoil, "NaN or infinite"), (explode, "internal error")])
def test_an_evaluation_that_fails_leaves_the_map_and_all_other_rows(fault: Any, message: str) -> None:
    asked = {"methods": ["saliency"], "evaluate": ["deletion"], "output": []}
    requests = [request(0, **asked), request(9, marked=True, **asked), request(1, **asked), request(2)]
    answers = engine(counted(Tripwire(fault))).run(requests)
    healthy = [engine().run([one])[0] for one in requests]
    assert explained(answers[1]).evaluation is None
    found, wanted = (explained(each[1]).result.values_NCHW for each in (answers, healthy))  # type: ignore[union-attr]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    (warning,) = replied(answers[1]).warnings
    assert warning.startswith("saliency is not evaluated: ")
    assert message in warning
    for n in (0, 2):
        assert_same(evaluated(answers[n]), evaluated(healthy[n]), within=1e-5)
    replied(answers[3])


def test_whoever_runs_the_process_reads_what_went_wrong() -> None:
    asked = request(9, marked=True, methods=["saliency"], evaluate=["deletion"], output=[])
    (reply,) = engine(counted(Tripwire(explode)), shows_details=True).run([asked])
    assert "ZeroDivisionError: a marked row (in explode" in replied(reply).warnings[0]


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluate", "forwards"), [(["deletion"], 22), (BOTH, 44), (["deletion", "deletion"], 22), ({"steps": 5}, 10)]
)
def test_a_curve_takes_as_many_forward_passes_as_it_has_steps(evaluate: Any, forwards: int) -> None:
    module = counted()
    live = engine(module, max_cost=3 + forwards)
    replied(live.run([request(0, methods=["saliency"], output=[], evaluate=evaluate)])[0])
    assert sum(module.batches) == 1 + forwards
    (error,) = engine(max_cost=2 + forwards).run([request(0, methods=["saliency"], evaluate=evaluate)])
    assert isinstance(error, RequestError)
    assert f"this request costs about {3 + forwards} forward passes and {2 + forwards} are allowed" in error.message


def changes(message: str) -> dict[str, dict[str, Any]]:
    """The changes to a request that a refusal offers."""
    offered: dict[str, dict[str, Any]] = {}
    if found := re.search(r"evaluate with steps=(\d+) or fewer", message):
        offered["steps"] = {"evaluate": {"curves": BOTH, "steps": int(found[1])}}
    if found := re.search(r"evaluate for (\w+)(?: or \w+)* alone", message):
        offered["alone"] = {"methods": [found[1]]}
    if re.search(r"without evaluate this costs about \S+ (forward passes|m?s) and would fit", message):
        offered["without"] = {"evaluate": None}
    return offered


COSTLY: dict[str, Any] = {"methods": ["saliency", "grad_cam"], "evaluate": BOTH, "output": []}


@pytest.mark.parametrize("change", ["steps", "alone", "without"])
def test_what_is_said_to_fit_the_allowed_cost_is_accepted(change: str) -> None:
    live = engine(max_cost=60)  # saliency and Grad-CAM take 3 each, their evaluations 44 each
    (error,) = live.run([request(0, **COSTLY)])
    assert isinstance(error, RequestError)
    assert (error.status, error.field) == (422, "evaluate")
    offered = changes(error.message)
    assert offered.keys() == {"steps", "alone", "without"}
    replied(live.run([request(0, **COSTLY | offered[change])])[0])


@pytest.mark.parametrize("steps", [14, 22, 100])
def test_the_steps_that_are_said_to_fit_are_the_most_that_fit(steps: int) -> None:
    live = engine(max_cost=60)
    (error,) = live.run([request(0, **COSTLY | {"evaluate": {"steps": steps}})])
    assert isinstance(error, RequestError)
    most = changes(error.message)["steps"]["evaluate"]["steps"]
    assert most == 13, "6 and 4 × 13 are 58 of 60"
    (again,) = live.run([request(0, **COSTLY | {"evaluate": {"steps": most + 1}})])
    assert isinstance(again, RequestError)


@pytest.mark.parametrize("change", ["steps", "alone", "without"])
def test_what_is_said_to_fit_the_allowed_seconds_is_accepted(change: str) -> None:
    replied(engine().run([request(0, **COSTLY)])[0])  # the first use imports things, which takes its time
    live = engine(paused(A_PICTURE)[0], max_seconds=1.2)  # 1.9 s are asked for
    (error,) = live.run([request(0, **COSTLY)])
    assert isinstance(error, RequestError)
    assert error.field == "evaluate"
    (answer,) = live.run([request(0, **COSTLY | changes(error.message)[change])])
    assert not isinstance(answer, RequestError)


def test_where_evaluating_alone_is_too_much_the_advice_is_to_do_without() -> None:
    (error,) = engine(max_cost=4).run([request(0, methods=["saliency"], evaluate=BOTH)])
    assert isinstance(error, RequestError)
    assert error.field == "evaluate"
    assert "without evaluate this costs about 3 forward passes and would fit" in error.message
    assert "steps=" not in error.message


def test_a_sweep_that_is_too_much_by_itself_is_still_told_its_option() -> None:
    sweep = {"method": "occlusion", "options": {"window": 8, "stride": 1}}
    (error,) = engine(max_cost=150).run([request(0, methods=[sweep], evaluate=["deletion"])])
    assert isinstance(error, RequestError)
    assert "occlusion with stride=2 or larger would fit" in error.message  # 81 windows and 22
    assert error.message.endswith("without evaluate this costs about 289 forward passes")
    assert error.field == "methods.0.options.stride"


# --- time -------------------------------------------------------------------------------------------------------------


def test_light_work_goes_first() -> None:
    asked = [request(0, methods=["saliency"], evaluate=["deletion"], output=[]), request(1, output=[])]
    seen: list[Step] = []
    for answer in engine().run(asked, on_step=seen.append):
        replied(answer)
    stages = [step.stage for n, step in enumerate(seen) if n == 0 or seen[n - 1].stage != step.stage]
    assert stages == ["predictions", "saliency", "predictions", "evaluate"]
    assert (seen[-1].done, seen[-1].total) == (22, 22)


def test_an_evaluation_does_not_make_a_prediction_in_its_batch_miss_its_deadline() -> None:
    live = engine(paused(A_PICTURE)[0])
    live.calibrate()
    asked = {"methods": ["saliency"], "evaluate": BOTH, "output": []}  # 0.9 s
    answers = live.run([request(0, **asked), request(1, deadline_ms=600)])
    assert isinstance(answers[0], OverloadError)
    assert "no deadline would be kept" in answers[0].message
    replied(answers[1])


def test_a_deadline_is_kept_in_the_middle_of_an_evaluation() -> None:
    module, pause = paused(0.0001)
    live = engine(module)
    live.calibrate()
    pause.seconds = A_PICTURE
    asked = {"methods": ["saliency"], "evaluate": {"steps": 25}, "output": []}
    started = time.perf_counter()
    answers = live.run([request(0, deadline_ms=400, **asked), request(1)])
    assert 0.4 < time.perf_counter() - started < 0.8, "of 1 s; the part that is under way ends"
    assert isinstance(answers[0], DeadlineError)
    replied(answers[1])


def test_an_evaluation_for_which_no_time_is_left_is_not_begun() -> None:
    module, pause = paused(0.0001)
    live = engine(module, max_seconds=0.6)
    live.calibrate()
    pause.seconds = A_PICTURE
    seen: list[Step] = []
    asked = {"methods": ["saliency"], "evaluate": {"steps": 25}, "output": []}  # 1 s each
    answers = live.run([request(0, **asked), request(1, **asked)], on_step=seen.append)
    assert [type(answer) for answer in answers] == [OverloadError, OverloadError]
    assert sum(step.stage == "evaluate" and not step.done for step in seen) == 1, "the second was never begun"


def test_an_evaluation_that_was_stopped_is_refused_the_next_times() -> None:
    module, pause = paused(0.0001)
    live = engine(module, max_seconds=0.4)
    live.calibrate()
    pause.seconds = A_PICTURE
    asked = {"methods": ["saliency"], "evaluate": {"steps": 20}, "output": []}  # 0.8 s
    answers = [live.run([request(0, **asked)])[0] for _ in range(3)]
    assert [type(answer) for answer in answers] == [OverloadError, OverloadError, RequestError]
    without = live.estimate(parse_params(asked | {"evaluate": None}))
    assert live.estimate(parse_params(asked)) - without == pytest.approx(40 * A_PICTURE, rel=0.4), "of all its passes"


def test_an_evaluation_is_reported_beside_its_method() -> None:
    seen: list[RequestRecord] = []
    live = engine(paused(0.001)[0])
    live.run([request(0, methods=["saliency"], evaluate=["deletion"], output=[])], on_row=seen.append)
    assert [(one.method, one.windows, one.error) for one in seen[0].methods] == [
        ("saliency", 0, None),
        ("evaluate", 0, None),
    ]
    assert 0.022 <= seen[0].methods[1].seconds < 5
