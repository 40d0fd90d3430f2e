"""The parameters that a request may have, and the refusals of all others."""

from __future__ import annotations

from typing import Any

import pytest

from convlens.engine.method_calls import MethodCall, method_calls
from convlens.errors import RequestError
from convlens.protocol.params import Params, parse_params

DEFAULTS = ("saliency", "occlusion")


def asked(**params: Any) -> list[MethodCall]:
    return method_calls(parse_params(params), DEFAULTS)


def refusal(given: dict[Any, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        method_calls(parse_params(given), DEFAULTS)
    assert caught.value.status == 422
    return caught.value


def occlusion(**options: Any) -> dict[str, Any]:
    return {"methods": ["saliency", {"method": "occlusion", "options": options}]}


def nested(depth: int) -> list[Any]:
    result: list[Any] = []
    for _ in range(depth):
        result = [result]
    return result


def test_a_bare_picture_is_a_whole_request_for_predictions_alone() -> None:
    assert parse_params({}) == Params(
        explain=False, topk=5, target=None, methods=None, output=["array", "overlay"], dtype="<f4", reduce="none"
    )
    assert asked() == []


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"topK": 3}, "topK", "unknown key 'topK'; did you mean topk? known keys: explain, topk, target, methods"),
        ({"zzz": 1}, "zzz", "unknown key 'zzz'; known keys: explain, topk"),
        ({"methods": [{"method": "saliency", "opts": {}}]}, "methods.0.opts", "did you mean options? known keys: meth"),
        (occlusion(windows=3), "methods.1.options.windows", "did you mean window? known keys: window, stride, fill,"),
        ({"methods": [{"method": "neighbours", "options": {"n": 1}}]}, "methods.0.options.n", "known keys: k"),
        ({"evaluate": {"step": 3}}, "evaluate.step", "did you mean steps? known keys: curves, steps"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_keys_there_are(
    given: dict[str, Any], field: str, message: str
) -> None:
    error = refusal(given)
    assert message in error.message
    assert error.field == field


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deadline_ms", 0), ("deadline_ms", -1), ("deadline_ms", 1e9), ("deadline_ms", "5"), ("deadline_ms", True),
        ("sent_at", -1.0), ("sent_at", "now"), ("size", "huge"), ("size", 224), ("accept", "text/html"),
        ("thumbnails", 1), ("thumbnails", None),
    ],
)  # fmt: skip
def test_values_that_no_request_can_mean_are_refused_by_name(key: str, value: Any) -> None:
    assert refusal({key: value}).field == key


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "-x", "a b", "a\nb", "é", "a\x00", "x" * 129, ""])
def test_an_id_is_a_plain_name_because_files_are_made_of_it(name: str) -> None:
    assert refusal({"methods": [{"method": "saliency", "id": name}]}).field == "methods.0.id"


@pytest.mark.parametrize(
    ("given", "field", "quoted"),
    [
        ({"topk": True}, "topk", "True"),
        ({"topk": "5"}, "topk", "'5'"),
        ({"topk": 5.0}, "topk", "5.0"),
        ({"topk": float("nan")}, "topk", "nan"),
        ({"topk": 0}, "topk", "0"),
        ({"topk": 101}, "topk", "101"),
        ({"topk": 10**400}, "topk", "1000"),
        ({"topk": None}, "topk", "None"),
        ({"explain": 1}, "explain", "1"),
        ({"explain": "yes"}, "explain", "'yes'"),
        ({"target": True}, "target", "True"),
        ({"target": -1}, "target", "-1"),
        ({"target": 3.0}, "target", "3.0"),
        ({"target": ""}, "target", "''"),
        ({"target": "x" * 257}, "target", "'xxx"),
        ({"target": [1]}, "target", "[1]"),
        ({"methods": [{"method": "saliency", "target": True}]}, "methods.0.target", "True"),
        ({"methods": [{"method": "saliency", "target": -3}]}, "methods.0.target", "-3"),
        ({"methods": "saliency"}, "methods", "'saliency'"),
        ({"methods": [3]}, "methods.0", "3"),
        ({"methods": [{}]}, "methods.0.method", "{}"),
        ({"methods": ["saliency", ""]}, "methods.1.method", "''"),
        ({"methods": [{"method": "saliency", "id": 4}]}, "methods.0.id", "4"),
        ({"methods": [{"method": "saliency", "options": []}]}, "methods.0.options", "[]"),
        ({"methods": ["saliency"] * 33}, "methods", "saliency"),
        ({"output": "array"}, "output", "'array'"),
        ({"output": ["array", "arrays"]}, "output.1", "'arrays'"),
        ({"output": ["array"] * 4}, "output", "array"),
        ({"dtype": ">f4"}, "dtype", "'>f4'"),
        ({"reduce": "max"}, "reduce", "'max'"),
        ({"neighbours": 0}, "neighbours", "0"),
        ({"neighbours": True}, "neighbours", "True"),
        ({"evaluate": "deletion"}, "evaluate", "'deletion'"),
        ({"evaluate": True}, "evaluate", "True"),
        ({"evaluate": []}, "evaluate", "[]"),
        ({"evaluate": ["deletion", "removal"]}, "evaluate.1", "'removal'"),
        ({"evaluate": ["deletion", "insertion", "deletion"]}, "evaluate", "deletion"),
        ({"evaluate": {"curves": ["removal"]}}, "evaluate.curves.0", "'removal'"),
        ({"evaluate": {"curves": []}}, "evaluate.curves", "[]"),
        ({"evaluate": {"steps": 1}}, "evaluate.steps", "1"),
        ({"evaluate": {"steps": 101}}, "evaluate.steps", "101"),
        ({"evaluate": {"steps": True}}, "evaluate.steps", "True"),
        ({"evaluate": {"steps": 22.0}}, "evaluate.steps", "22.0"),
        ({"seed": -1}, "seed", "-1"),
        ({"seed": 2**63}, "seed", "9223372036854775808"),
        ({"request_id": "two words"}, "request_id", "'two words'"),
        ({"request_id": "id\n"}, "request_id", "'id\\n'"),
        ({"request_id": "é"}, "request_id", "'é'"),
        ({"request_id": "x" * 129}, "request_id", "'xxx"),
        ({"topk": nested(5000)}, "topk", "[[[["),
        (occlusion(window=True), "methods.1.options.window", "True"),
        (occlusion(window="32"), "methods.1.options.window", "'32'"),
        (occlusion(window=0), "methods.1.options.window", "0"),
        (occlusion(window=-5), "methods.1.options.window", "-5"),
        (occlusion(stride=10**30), "methods.1.options.stride", "1000000"),
        (occlusion(fill=float("nan")), "methods.1.options.fill", "nan"),
        (occlusion(fill=float("inf")), "methods.1.options.fill", "inf"),
        (occlusion(fill=False), "methods.1.options.fill", "False"),
        (occlusion(score="logits"), "methods.1.options.score", "'logits'"),
        (occlusion(window=nested(5000)), "methods.1.options.window", "[[[["),
    ],
)
def test_a_value_of_a_wrong_kind_or_out_of_range_is_quoted_with_its_place(
    given: dict[str, Any], field: str, quoted: str
) -> None:
    error = refusal(given)
    assert error.field == field
    assert error.message.startswith(f"{field}: ")
    assert f"; got {quoted}" in error.message or f"got [{quoted}" in error.message or f"got ['{quoted}" in error.message
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("evaluate", "curves", "steps"),
    [
        (["deletion"], ["deletion"], 22),
        (["insertion", "deletion"], ["insertion", "deletion"], 22),
        (["deletion", "deletion"], ["deletion"], 22),
        ({}, ["deletion", "insertion"], 22),
        ({"steps": 2}, ["deletion", "insertion"], 2),
        ({"curves": ["insertion"], "steps": 100}, ["insertion"], 100),
    ],
)
def test_curves_are_asked_for_by_a_list_or_with_their_steps(evaluate: Any, curves: list[str], steps: int) -> None:
    asked_for = parse_params({"evaluate": evaluate}).evaluation
    assert asked_for is not None
    assert (asked_for.curves, asked_for.steps) == (curves, steps)


@pytest.mark.parametrize("given", [{}, {"evaluate": None}])
def test_nothing_is_evaluated_by_default(given: dict[str, Any]) -> None:
    assert parse_params(given).evaluation is None


def test_keys_that_are_no_strings_are_refused() -> None:
    assert "keys should be strings" in refusal({1: 2}).message


def test_an_unknown_method_lists_all_there_are() -> None:
    error = refusal({"methods": ["saliency", "occlude"]})
    assert "no method 'occlude'; did you mean occlusion?" in error.message
    for name in ("saliency", "guided_backprop", "deconvnet", "occlusion", "neighbours", "grad_cam", "smoothgrad"):
        assert name in error.message
    assert error.field == "methods.1.method"


def test_a_key_of_megabytes_is_neither_compared_nor_quoted_in_full() -> None:
    error = refusal({"k" * 5_000_000: 1})
    assert len(error.message) < 400


def test_a_method_may_be_named_by_a_bare_string_and_gets_its_default_options() -> None:
    (job,) = asked(methods=["occlusion"])
    assert (job.id, job.method.name, job.target) == ("occlusion", "occlusion", None)
    assert job.options == {
        "window": 32,
        "stride": 16,
        "fill": 0.0,
        "score": "logit",
        "strategy": "full",
        "precision": "float32",
    }


def test_a_whole_number_serves_as_a_float_option() -> None:
    (_, job) = asked(**occlusion(fill=1))
    assert job.options["fill"] == 1.0


@pytest.mark.parametrize(
    ("methods", "ids"),
    [
        (["saliency", "saliency", "saliency"], ["saliency", "saliency-2", "saliency-3"]),
        ([{"method": "saliency", "id": "occlusion"}, "occlusion"], ["occlusion", "occlusion-2"]),
        ([{"method": "saliency", "id": "a"}, {"method": "saliency", "id": "b"}], ["a", "b"]),
    ],
)
def test_every_explanation_gets_an_id_of_its_own(methods: list[Any], ids: list[str]) -> None:
    assert [job.id for job in asked(methods=methods)] == ids


def test_two_methods_of_the_same_id_are_refused() -> None:
    error = refusal({"methods": [{"method": "saliency", "id": "a"}, {"method": "occlusion", "id": "a"}]})
    assert "two methods have the id 'a'" in error.message
    assert error.field == "methods"


def test_asking_to_be_explained_without_naming_methods_asks_for_the_default_ones() -> None:
    assert [job.method.name for job in asked(explain=True)] == ["saliency", "occlusion"]
    assert asked(explain=True, methods=[]) == []
    assert [job.method.name for job in asked(explain=True, methods=["grad_cam"])] == ["grad_cam"]
    assert [job.method.name for job in asked(methods=["grad_cam"])] == ["grad_cam"]


def test_the_requests_target_holds_for_every_method_that_names_none() -> None:
    result = asked(target="tiger cat", methods=["saliency", {"method": "occlusion", "target": 0}])
    assert [job.target for job in result] == ["tiger cat", 0]


def test_neighbours_k_asks_for_neighbours_and_says_how_many() -> None:
    assert [(job.method.name, dict(job.options)) for job in asked(neighbours=3)] == [("neighbours", {"k": 3})]


def test_neighbours_k_counts_for_those_asked_for_without_a_k_of_their_own() -> None:
    given = ["neighbours", {"method": "neighbours", "id": "few", "options": {"k": 1}}]
    assert [job.options["k"] for job in asked(neighbours=7, methods=given)] == [7, 1]


def test_the_seed_reaches_the_methods_that_have_one() -> None:
    noisy, plain = asked(seed=7, methods=["smoothgrad", "saliency"])
    assert noisy.options["seed"] == 7
    assert "seed" not in plain.options
    (own,) = asked(seed=7, methods=[{"method": "smoothgrad", "options": {"seed": 1}}])
    assert own.options["seed"] == 1
