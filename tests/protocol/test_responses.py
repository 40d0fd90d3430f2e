"""Replies as strict JSON, read here by plain means first and then by our own parser."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import engine, picture, replied, request, small_gallery

from convlens import image
from convlens.errors import ImageTooLargeError, OutOfMemoryError, RequestError, ServerError, TargetError
from convlens.protocol.arrays import ArrayBody
from convlens.protocol.params import Params, parse_params
from convlens.protocol.requests import Request
from convlens.protocol.responses import dumps, error_json, from_json, to_json
from convlens.types import Attribution, Evaluation, Explanation, Meta, Neighbourhood, Reply, ScoreCurve

SMALL = {"method": "occlusion", "options": {"window": 8, "stride": 4}}


def strict(text: str) -> Any:
    """Parsed as every language's parser would: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def array(body: dict[str, Any]) -> np.ndarray:
    assert body["encoding"] == "base64"
    return np.frombuffer(base64.b64decode(body["data"], validate=True), body["dtype"]).reshape(body["shape"])


def answered(**params: Any) -> tuple[Reply, Params]:
    one = request(2, **params)
    (answer,) = engine().run([one])
    return replied(answer), one.params


def of_values(values: Any, method: str = "saliency") -> Reply:
    """A reply with this map in it."""
    meta = Meta("0" * 64, "logit", "normalised", "float32", "cpu")
    score_N, target_N = np.array([1.5]), np.array([2])
    result = Attribution(np.asarray(values)[None], score_N, target_N, method, {}, meta)
    return Reply("m", "1", "0" * 64, "", "cpu", (), (Explanation("e", method, result, "x", 1.0),), (), {})


# --- one array --------------------------------------------------------------------------------------------------------


def encode_array(values: np.ndarray, dtype: Any) -> dict[str, Any]:
    return ArrayBody.of(values, dtype, "CHW").json_object()


EDGES = [0.0, -0.0, 1.0, -1.5, 1e-45, -1.1754942e-38, 3.4028235e38, -3.4028235e38, 1 / 3]


def test_float32_arrays_arrive_bit_for_bit_in_little_endian() -> None:
    values = np.array(EDGES * 4, "<f4").reshape(2, 3, 6)
    body = encode_array(values, "<f4")
    assert {key: body[key] for key in ("dtype", "shape", "layout", "encoding")} == {
        "dtype": "<f4",
        "shape": [2, 3, 6],
        "layout": "CHW",
        "encoding": "base64",
    }
    assert base64.b64decode(body["data"]) == values.tobytes()
    assert array(body).tobytes() == ArrayBody(**body).decode().tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "values", [np.arange(6.0, dtype=">f4"), np.arange(12.0, dtype="f4")[::2], np.asfortranarray(np.ones((2, 3)))]
)
def test_any_memory_order_arrives_as_the_same_numbers(values: np.ndarray) -> None:
    np.testing.assert_array_equal(array(encode_array(values, "<f4")), values)


def test_float16_arrays_saturate_rather_than_become_infinite() -> None:
    result = array(encode_array(np.array([1e6, -1e6, 65504.0, 1 / 3, 1e-9], "f4"), "<f2"))
    assert result.dtype == np.float16
    # 65504 is the largest float16; 1/3 has eleven bits in it; 1e-9 is below the least, 6e-8.
    assert result.tolist() == [65504.0, -65504.0, 65504.0, 0.333251953125, 0.0]


def test_float64_values_beyond_float32_saturate() -> None:
    assert array(encode_array(np.array([1e300, -1e300]), "<f4")).tolist() == [
        float(np.finfo("f4").max),
        float(np.finfo("f4").min),
    ]


# --- a whole reply ----------------------------------------------------------------------------------------------------


def test_a_reply_is_strict_json_with_the_contracts_keys() -> None:
    reply, params = answered(
        explain=True, methods=["saliency", SMALL], request_id="r-1", output=["array", "overlay", "heatmap"]
    )
    body = strict(dumps(to_json(reply, params)))
    assert set(body) == {
        "model", "request_id", "device", "runtime", "activation", "placement", "predictions", "explanations",
        "warnings", "timing_ms"
    }  # fmt: skip
    assert body["model"] == {"name": "convlens", "version": "1.0", "weights_sha256": reply.weights_sha256}
    assert body["request_id"] == "r-1"
    assert set(body["predictions"][0]) >= {"index", "label", "probability"}
    for one in body["explanations"]:
        assert set(one) >= {
            "id",
            "method",
            "target",
            "target_score",
            "array",
            "overlay",
            "options",
            "stats",
            "timing_ms",
        }
        assert isinstance(one["target"], int)
        assert isinstance(one["timing_ms"], float)
    assert [one["options"] for one in body["explanations"]] == [
        {"score": "logit"},
        {"window": 8, "stride": 4, "fill": 0.0, "score": "logit", "strategy": "full", "precision": "float32"},
    ]


def test_labels_with_line_breaks_and_letters_beyond_ascii_travel_as_escapes() -> None:
    (answer,) = engine().run([request(0, topk=6)])
    reply = replied(answer)
    odd = replace(reply, predictions=(replace(reply.predictions[0], label="línea\r\nbreak \u2028 \ud83d\ude00 \x00"),))
    text = dumps(to_json(odd, Params()))
    assert text.isascii()
    assert "\n" not in text and "\x00" not in text
    assert strict(text)["predictions"][0]["label"].startswith("línea\r\nbreak \u2028")


def test_not_a_number_never_becomes_text() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps({"value": float("nan")})


def test_huge_values_still_make_strict_json() -> None:
    values = np.full((3, 4, 4), 3e38, np.float32)
    body = strict(dumps(to_json(of_values(values), Params())))
    stats = body["explanations"][0]["stats"]
    assert stats == {name: pytest.approx(3e38) for name in ("min", "max", "mean", "abs_max")}


def test_the_map_is_the_one_that_was_computed() -> None:
    reply, params = answered(methods=["saliency", SMALL])
    gradient, occlusion = (one["array"] for one in to_json(reply, params)["explanations"])
    assert (gradient["layout"], gradient["shape"]) == ("CHW", [3, 24, 24])
    assert (occlusion["layout"], occlusion["shape"]) == ("CHW", [1, 24, 24])
    for body, one in zip((gradient, occlusion), reply.explanations, strict=True):
        np.testing.assert_array_equal(array(body), one.result.values_NCHW[0])


def test_the_raw_grid_of_drops_comes_with_its_layout() -> None:
    reply, params = answered(methods=[SMALL])
    (one,) = to_json(reply, params)["explanations"]
    grid = one["extras"]["grid_NRQ"]
    # Windows of 8 every 4 pixels over 24: at 0, 4, 8, 12 and 16.
    assert (grid["layout"], grid["shape"]) == ("RQ", [5, 5])
    np.testing.assert_array_equal(array(grid), reply.explanations[0].result.extras["grid_NRQ"][0])


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("abs_max", [[[4.0, 2.0], [6.0, 0.0]]]),
        ("sum", [[[-5.0, 1.0], [6.0, 0.0]]]),
        ("none", [[[1.0, 2.0], [0.0, 0.0]], [[-4.0, -1.0], [6.0, 0.0]], [[-2.0, 0.0], [0.0, 0.0]]]),
    ],
)
def test_reductions_over_the_channels(how: str, wanted: Any) -> None:
    values = np.array([[[1, 2], [0, 0]], [[-4, -1], [6, 0]], [[-2, 0], [0, 0]]], np.float32)
    (one,) = to_json(of_values(values), parse_params({"reduce": how}))["explanations"]
    assert array(one["array"]).tolist() == wanted
    assert one["array"]["layout"] == ("CHW" if how == "none" else "1HW")
    assert one["stats"] == {"min": -4.0, "max": 6.0, "mean": pytest.approx(2 / 12), "abs_max": 6.0}


@pytest.mark.parametrize("wanted", [["array"], ["overlay"], ["heatmap"], []])
def test_only_the_outputs_asked_for_are_in_the_reply(wanted: list[str]) -> None:
    reply, params = answered(methods=["saliency"], output=wanted)
    (one,) = to_json(reply, params)["explanations"]
    assert {key for key in ("array", "overlay", "heatmap") if key in one} == set(wanted)
    assert one["stats"]["abs_max"] > 0


def test_pictures_are_pngs_of_what_the_model_saw() -> None:
    one = Request(
        picture(2, size=(90, 60)), parse_params({"methods": ["saliency", SMALL], "output": ["overlay", "heatmap"]})
    )
    (answer,) = engine().run([one])
    for body in to_json(replied(answer), one.params)["explanations"]:
        for kind in ("overlay", "heatmap"):
            assert body[kind]["media_type"] == "image/png"
            data = base64.b64decode(body[kind]["data"], validate=True)
            assert data.startswith(b"\x89PNG")
            assert image.decode(data).size == (24, 24)


def test_neighbours_come_with_distances_and_thumbnails(tmp_path: Path) -> None:
    (answer,) = engine(gallery=small_gallery(tmp_path / "g")).run([request(0, neighbours=2)])
    (one,) = strict(dumps(to_json(replied(answer), Params())))["explanations"]
    assert one["target"] is None
    assert "array" not in one
    assert set(one["neighbours"][0]) == {"id", "label", "distance", "thumbnail"}
    assert one["neighbours"][0]["distance"] <= one["neighbours"][1]["distance"]
    thumbnail = one["neighbours"][0]["thumbnail"]
    assert thumbnail["media_type"] == "image/jpeg"
    assert base64.b64decode(thumbnail["data"]).startswith(b"\xff\xd8 picture")


def test_curves_come_with_their_areas_and_how_they_were_made() -> None:
    curve = ScoreCurve(
        np.array([0, 0.5, 1]), np.array([0.9, 0.5, 0.1]), np.array([4.0, 2, -1]), {"probability": 0.5, "logit": 1.75}
    )
    evaluation = Evaluation({"deletion": curve}, 2, "blur", "mean", 0, "by size")
    reply = of_values(np.ones((1, 2, 2), np.float32))
    explanation = replace(reply.explanations[0], evaluation=evaluation)
    body = strict(dumps(to_json(replace(reply, explanations=(explanation,)), Params())))
    assert body["explanations"][0]["evaluation"] == {
        "deletion": {
            "auc": {"probability": 0.5, "logit": 1.75},
            "fraction": [0.0, 0.5, 1.0],
            "probability": [0.9, 0.5, 0.1],
            "logit": [4.0, 2.0, -1.0],
        },
        "protocol": {
            "steps": 2,
            "insertion_substrate": "blur",
            "deletion_substrate": "mean",
            "seed": 0,
            "order": "by size",
        },
    }


def test_without_an_evaluation_the_reply_has_no_place_for_it() -> None:
    reply, params = answered(methods=["saliency"], output=[])
    assert "evaluation" not in to_json(reply, params)["explanations"][0]


# --- and back ---------------------------------------------------------------------------------------------------------


def as_plain(value: Any) -> Any:
    """Nested dicts, tuples and lists, with arrays as (dtype kind, shape, numbers)."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind, value.shape, value.tolist()
    if isinstance(value, dict):
        return {key: as_plain(one) for key, one in value.items()}
    return [as_plain(one) for one in value] if isinstance(value, list | tuple) else value


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    params = {
        "methods": ["saliency", SMALL, "grad_cam", {"method": "smoothgrad", "options": {"samples": 2}}],
        "neighbours": 2,
        "evaluate": {"steps": 3},
        "request_id": "x",
        "output": ["array", "overlay", "heatmap"],
    }
    one = Request(picture(1, size=(20, 30)), parse_params(params))
    (answer,) = engine(gallery=small_gallery(tmp_path / "g")).run([one])
    wanted = replied(answer)
    result = from_json(strict(dumps(to_json(wanted, one.params))))
    assert as_plain(asdict(result)) == as_plain(asdict(wanted))
    assert isinstance(result.explanations[-1].result, Neighbourhood)
    assert all(isinstance(one.result.meta.warnings, tuple) for one in result.explanations)


def test_a_reply_without_arrays_can_be_read_back() -> None:
    reply, params = answered(methods=["saliency"], output=["overlay"])
    result = from_json(to_json(reply, params)).explanations[0]
    assert isinstance(result.result, Attribution)
    assert result.result.values_NCHW.size == 0
    assert result.overlay_png == reply.explanations[0].overlay_png


def damaged(*path: Any, value: Any) -> dict[str, Any]:
    reply, params = answered(methods=[SMALL])
    body = strict(dumps(to_json(reply, params)))
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return dict(body)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), None),
        (("model",), []),
        (("predictions",), [1]),
        (("predictions", 0), {"index": 1}),
        (("explanations", 0, "array", "data"), "!"),
        (("explanations", 0, "array", "shape"), [1, 2, 3]),
        (("explanations", 0, "array", "dtype"), "O"),
        (("explanations", 0, "extras"), []),
        (("explanations", 0, "meta"), "none"),
        (("explanations", 0, "meta"), {}),
        (("explanations", 0, "target"), None),
        (("explanations", 0, "target_score"), None),
        (("explanations",), None),
    ],
)
def test_what_is_no_reply_is_said_to_be_none(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(ServerError, match="no reply of a ConvLens server"):
        from_json(damaged(*path, value=value))


def test_keys_of_a_newer_server_are_ignored_at_every_level() -> None:
    reply, params = answered(methods=[SMALL], output=["array", "overlay"], evaluate={"steps": 3})
    body = strict(dumps(to_json(reply, params)))

    def extended(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: extended(one) for key, one in value.items()} | {"added_later": 1}
        return [extended(one) for one in value] if isinstance(value, list) else value

    newer = extended(body)
    for one in newer["explanations"]:  # these hold names of the caller's choice, where nothing is unknown
        del one["options"]["added_later"], one["extras"]["added_later"]
    del newer["timing_ms"]["added_later"]
    assert as_plain(asdict(from_json(newer))) == as_plain(asdict(from_json(body)))


def test_what_an_older_server_leaves_out_has_its_default() -> None:
    reply, params = answered(methods=[SMALL])
    body = strict(dumps(to_json(reply, params)))
    meta = body["explanations"][0]["meta"]
    assert meta["precision"] == "float32"
    del body["placement"], meta["sweep"], meta["precision"]
    read = from_json(body)
    assert read.placement is None
    found = read.explanations[0].result.meta
    assert (found.sweep, found.precision) == ("", "")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("no", field="topk"), 422),
        (TargetError("no", field="target"), 422),
        (ImageTooLargeError("no"), 413),
        (OutOfMemoryError("no"), 507),
    ],
)
def test_an_error_has_its_code_type_message_and_place(error: Any, code: int) -> None:
    assert strict(dumps(error_json(error, request_id="r"))) == {
        "code": code,
        "type": type(error).__name__,
        "message": "no",
        "field": error.field,
        "request_id": "r",
    }


def test_an_error_that_quotes_megabytes_is_cut_short() -> None:
    text = dumps(error_json(RequestError("\x00" * 10_000_000, field="k\n" * 5_000_000)))
    assert len(text) < 20_000
    assert strict(text)["message"].endswith("…")
