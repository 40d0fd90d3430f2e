"""Neurons as targets of requests: what may be said, what comes back, and what shares a batch with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import engines
import numpy as np
import pytest

from convlens.engine.method_calls import method_calls
from convlens.errors import RequestError
from convlens.explain import ForwardPass, run_neurons
from convlens.protocol.params import parse_params
from convlens.protocol.responses import dumps, from_json, to_json
from convlens.types import Attribution, Neuron

STRONGEST = {"layer": "second", "channel": 4}
PLACED = STRONGEST | {"y": 3, "x": 7}


def refusal(target: object, **more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        method_calls(parse_params({"methods": ["saliency"], "target": target, **more}), ())
    assert caught.value.status == 422
    return caught.value


def answered(seed: int = 0, *, engine: Any = None, **params: Any) -> Any:
    (reply,) = (engine or engines.engine()).run([engines.request(seed, **params)])
    return reply


@pytest.mark.parametrize(
    ("target", "field", "message"),
    [
        ({"layer": "second"}, "target.channel", "channel"),
        ({"channel": 1}, "target.layer", "layer"),
        (STRONGEST | {"y": 1}, "target", "y and x go together: give both or neither"),
        (STRONGEST | {"channel": -1}, "target.channel", "greater than or equal to 0"),
        (STRONGEST | {"channel": True}, "target.channel", "integer"),
        (STRONGEST | {"colum": 1}, "target.colum", "unknown key 'colum'; known keys: layer, channel, y, x"),
        ([3], "target", "a class index from 0, a label, or a neuron's layer and channel"),
    ],
)
def test_what_is_no_neuron_is_refused_with_its_place(target: object, field: str, message: str) -> None:
    error = refusal(target)
    assert message in error.message
    assert error.field == field


@pytest.mark.parametrize(
    ("target", "key", "message"),
    [
        ({"layer": "secnd", "channel": 0}, "", "did you mean second"),
        ({"layer": "second", "channel": 12}, ".channel", "has no channel 12; there are 0..11"),
        (PLACED | {"y": 12}, ".y", "has y of 0..11; got 12"),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_what_the_network_does_not_have_is_refused_with_its_place(
    target: dict[str, Any], key: str, message: str, own: bool
) -> None:
    method: dict[str, Any] = {"method": "saliency"}
    error = answered(methods=[method | {"target": target}]) if own else answered(methods=[method], target=target)
    assert isinstance(error, RequestError)
    assert message in error.message
    assert (error.field or "").startswith(("methods.0.target" if own else "target") + key)


def test_a_neuron_s_answer_is_the_library_s_and_says_which_it_was() -> None:
    reply = engines.replied(answered(methods=["saliency", "guided_backprop"], target=STRONGEST))
    classifier = engines.classifier(engines.counted())
    x_CHW = (np.asarray(engines.picture(0), np.float32) / 255 - 0.5).transpose(2, 0, 1) / 0.25
    for one in reply.explanations:
        expected = run_neurons(one.method, ForwardPass(classifier, x_CHW[None]), [Neuron("second", 4)])
        assert isinstance(one.result, Attribution)
        assert isinstance(expected, Attribution)
        np.testing.assert_allclose(one.result.values_NCHW, expected.values_NCHW, atol=1e-6)
        assert one.result.neurons_N == expected.neurons_N
        assert one.result.neurons_N[0].y is not None
        assert one.target_label == str(expected.neurons_N[0])


def test_classes_and_neurons_of_several_layers_share_a_batch() -> None:
    targets: list[dict[str, Any]] = [
        {"target": PLACED},
        {"target": 2},
        {"target": {"layer": "first", "channel": 0}},
        {},
        {"target": STRONGEST},
    ]
    requests = [engines.request(n, methods=["guided_backprop"], **one) for n, one in enumerate(targets)]
    together = engines.engine().run(requests)
    for n, one in enumerate(targets):
        alone = answered(n, methods=["guided_backprop"], **one)
        np.testing.assert_allclose(
            engines.values(together[n], "guided_backprop"), engines.values(alone, "guided_backprop"), atol=1e-6
        )


def test_a_bad_neuron_does_not_spoil_the_others_in_its_batch() -> None:
    targets = [PLACED, PLACED | {"channel": 99}, STRONGEST]
    requests = [engines.request(n, methods=["saliency"], target=one) for n, one in enumerate(targets)]
    good, bad, also = engines.engine().run(requests)
    assert isinstance(bad, RequestError)
    for n, reply in ((0, good), (2, also)):
        alone = answered(n, methods=["saliency"], target=targets[n])
        np.testing.assert_allclose(engines.values(reply, "saliency"), engines.values(alone, "saliency"), atol=1e-6)


def test_default_methods_that_explain_classes_only_are_left_out_with_a_warning() -> None:
    engine = engines.engine(default_methods=("saliency", "occlusion"))
    reply = engines.replied(answered(engine=engine, explain=True, target=STRONGEST))
    assert [one.id for one in reply.explanations] == ["saliency"]
    assert "occlusion is left out: it explains classes, and a neuron was asked about" in reply.warnings


def test_one_asked_for_by_name_is_refused() -> None:
    error = answered(methods=["occlusion"], target=STRONGEST)
    assert isinstance(error, RequestError)
    assert "occlusion explains classes; neurons are explained by" in error.message
    assert error.field == "target"


def test_neighbours_are_about_no_target(tmp_path: Path) -> None:
    engine = engines.engine(gallery=engines.small_gallery(tmp_path / "gallery"))
    reply = engines.replied(answered(engine=engine, methods=["neighbours", "saliency"], target=STRONGEST))
    assert [one.id for one in reply.explanations] == ["neighbours", "saliency"]


def test_the_reply_names_the_neuron_and_reads_back() -> None:
    reply = engines.replied(answered(methods=["saliency"], target=PLACED))
    params = parse_params({"methods": ["saliency"], "target": PLACED, "output": ["array"]})
    written = json.loads(dumps(to_json(reply, params)))
    (body,) = written["explanations"]
    assert body["neuron"] == {"layer": "second", "channel": 4, "y": 3, "x": 7}
    assert body["target"] is None
    (one,) = from_json(written).explanations
    assert isinstance(one.result, Attribution)
    assert one.result.neurons_N == (Neuron("second", 4, 3, 7),)
