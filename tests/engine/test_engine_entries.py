"""An entry that leaves sweeps to another, and sweeps that are in half precision unless told otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from engines import counted, engine, replied, request

from convlens.errors import RequestError

TINY = {"window": 12, "stride": 12}  # four windows
HEAVY: list[dict[str, Any]] = [
    {"method": "occlusion", "options": {"window": 6, "stride": 6}},
    {"method": "smoothgrad"},
    {"method": "integrated_gradients", "options": {"steps": 4}},
]


@pytest.mark.parametrize("one", HEAVY, ids=lambda one: one["method"])
def test_the_quick_entry_says_where_a_sweep_is_answered(one: dict[str, Any]) -> None:
    module = counted()
    live = engine(module, sweeps_at="nets_sweep")
    answers = live.run([request(0, methods=["saliency", one]), request(1, methods=["saliency"])])
    assert isinstance(answers[0], RequestError)
    assert "answered by the model entry 'nets_sweep': ask /explanations/nets_sweep" in answers[0].message
    assert one["method"] in answers[0].message
    assert answers[0].field == "methods.1"
    replied(answers[1])
    assert module.batches == [1], "the refused row takes no forward"
    replied(engine(max_cost=2000).run([request(0, methods=["saliency", one])])[0])


def test_the_quick_entry_answers_what_is_quick_whatever_its_method() -> None:
    quick = ["saliency", "guided_backprop", "deconvnet", "grad_cam", {"method": "occlusion", "options": TINY}]
    (answer,) = engine(sweeps_at="nets_sweep").run([request(0, methods=quick)])
    assert [one.method for one in replied(answer).explanations] == [
        "saliency",
        "guided_backprop",
        "deconvnet",
        "grad_cam",
        "occlusion",
    ]


def test_the_quick_entry_leaves_sweeps_out_of_the_defaults_and_says_where_they_are() -> None:
    # The usual window of 32 covers the 24 pixels at once: one window. Hence samples.
    live = engine(sweeps_at="nets_sweep", default_methods=("saliency", "smoothgrad", "guided_backprop"))
    (answer,) = live.run([request(0, explain=True)])
    assert [one.method for one in replied(answer).explanations] == ["saliency", "guided_backprop"]
    assert replied(answer).warnings == ("smoothgrad is left out here: ask the model entry 'nets_sweep' for it",)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "half"),
        ({"precision": "float32"}, "float32"),
        ({"precision": "half"}, "half"),
    ],
)
def test_sweeps_are_in_the_engines_precision_unless_the_request_names_one(
    options: dict[str, str], expected: str
) -> None:
    one = {"method": "occlusion", "options": {**TINY, **options}}
    (answer,) = engine(precision="half").run([request(0, methods=["saliency", one])])
    gradient, swept = (explanation.result for explanation in replied(answer).explanations)
    assert swept.options["precision"] == expected
    assert ("half_deviation_N" in swept.extras) == (expected == "half")
    assert gradient.meta.dtype == "float32"


def test_default_methods_are_in_the_engines_precision() -> None:
    (answer,) = engine(precision="half", default_methods=("occlusion",)).run([request(0, explain=True)])
    assert replied(answer).explanations[0].result.options["precision"] == "half"


def test_the_default_precision_is_float32() -> None:
    (answer,) = engine().run([request(0, methods=["occlusion"])])
    assert replied(answer).explanations[0].result.options["precision"] == "float32"


def test_an_incremental_sweep_is_not_turned_to_half_precision() -> None:
    one = {"method": "occlusion", "options": {**TINY, "strategy": "incremental"}}
    (answer,) = engine(precision="half").run([request(0, methods=[one])])
    assert isinstance(answer, RequestError)
    assert "needs a graph of these windows" in answer.message, "and not that incremental works in float32 only"
