"""Through a live TorchServe: evaluated maps are what the library computes, and what does not fit is told what would."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from live_server import Connect, Live, photograph

from convlens import explain, image
from convlens.client import RemoteError
from convlens.evaluation.perturbation import Curve, CurveProtocol, perturbation_curves
from convlens.evaluation.relevance import pixel_order, relevance
from convlens.explain import ForwardPass
from convlens.models import Classifier, find_class
from convlens.types import Explanation

METHODS = ("saliency", "grad_cam")
TARGET = "tabby"
STEPS = 11


@pytest.fixture(scope="module")
def wanted(live: Live) -> dict[str, dict[Any, Curve]]:
    """The curves of each method's map of the cat, by the library's functions."""
    model = live.engine.model
    assert isinstance(model, Classifier)
    target = find_class(model.spec.labels, TARGET)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker: more would add in another order
    try:
        forward = ForwardPass(model, image.prepare(image.decode(photograph()), model.spec).x_CHW[None])
        made = {}
        for name in METHODS:
            values_CHW = explain.run(name, forward, [target]).values_NCHW[0]  # type: ignore[union-attr]
            order = pixel_order(relevance(values_CHW, explain.get(name).drawing))
            made[name] = perturbation_curves(
                forward, target, order, ["deletion", "insertion"], CurveProtocol(steps=STEPS)
            )
        return made
    finally:
        torch.set_num_threads(before)


def asked(connect: Connect, evaluate: Any, **params: Any) -> tuple[Explanation, ...]:
    return (
        connect().explain(photograph(), methods=list(METHODS), target=TARGET, evaluate=evaluate, **params).explanations
    )


def test_an_evaluated_explanation_has_the_library_s_numbers(connect: Connect, wanted: Any) -> None:
    found = asked(connect, {"steps": STEPS})
    assert [one.id for one in found] == list(METHODS)
    for one in found:
        assert one.evaluation is not None
        assert one.evaluation.curves.keys() == wanted[one.id].keys()
        for kind, curve in one.evaluation.curves.items():
            expected = wanted[one.id][kind]
            # Of float32, in which a batch adds in another order.
            np.testing.assert_allclose(curve.fraction_S, expected.fraction_S)
            np.testing.assert_allclose(curve.probability_S, expected.probability_S, atol=1e-4)
            np.testing.assert_allclose(curve.logit_S, expected.logit_S, rtol=1e-4, atol=1e-3)
            assert curve.auc["probability"] == pytest.approx(expected.auc("probability"), abs=1e-4)
            assert curve.auc["logit"] == pytest.approx(expected.auc("logit"), rel=1e-4)
        assert (one.evaluation.steps, one.evaluation.seed) == (STEPS, 0)


def test_a_reply_as_json_says_how_its_curves_were_made(live: Live) -> None:
    body = live.explain({"methods": ["saliency", "neighbours"], "evaluate": {"curves": ["deletion"], "steps": 3}})
    evaluation = body["explanations"][0]["evaluation"]
    assert set(evaluation) == {"deletion", "protocol"}
    assert len(evaluation["deletion"]["logit"]) == 4
    assert evaluation["protocol"]["steps"] == 3
    assert "evaluation" not in body["explanations"][1]
    assert body["warnings"] == ["neighbours is not evaluated: it gives no map"]


def test_what_does_not_fit_is_refused_with_what_would_which_is_then_accepted(connect_small: Connect) -> None:
    # Ten maps and twenty curves: 30 and 2000 forward passes, of 2000 that an archive allows.
    methods = [{"method": "saliency", "id": f"of_{target}", "target": target} for target in range(10)]
    with pytest.raises(RemoteError) as caught:
        connect_small(model="small").explain(photograph(), methods=methods, evaluate={"steps": 100}, output=[])
    assert (caught.value.status, caught.value.field) == (422, "evaluate")
    (steps, alone) = re.findall(r"evaluate with steps=(\d+) or fewer, or evaluate for (\w+) or", caught.value.message)[
        0
    ]
    assert int(steps) == (2000 - 30) // 20
    assert "without evaluate this costs about 30 forward passes and would fit" in caught.value.message
    fewer = [one for one in methods if one["id"] == alone]
    found = connect_small(model="small").explain(photograph(), methods=fewer, evaluate={"steps": 100}, output=[])
    assert [len(one.evaluation.curves) for one in found.explanations if one.evaluation] == [2]


def test_a_png_has_no_room_for_curves(live: Live) -> None:
    form = {"data": ("picture", photograph()), "params": (None, '{"evaluate": ["deletion"]}')}
    got = live.ask("explanations/convlens/1.0/saliency", files=form, headers={"Accept": "image/png"})
    assert got.status_code == 422
    assert got.json()["field"] == "evaluate"
