"""Through a live TorchServe: requests of every kind share a batch, and each gets its own right answer."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from live_server import BATCHED, QUICK, Live, array, assert_same_map, photograph, strict

from convlens import image
from convlens.cli.photographs import OTHERS
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Attribution, Neighbourhood, Reply

COARSE = {"window": 56, "stride": 56}
CORRUPT = photograph("coffee.png")[:5000]


def form(name: str, params: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": f"predictions/{BATCHED}",
        "files": {"data": (name, photograph(name)), "params": (None, json.dumps(params))},
    }


def raw(name: str, path: str = f"predictions/{BATCHED}") -> dict[str, Any]:
    return {"path": path, "content": photograph(name)}


# What is sent, and of which picture by which parameters it is the answer.
MIXED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (raw("chelsea.png"), "chelsea.png", {}),
    *(
        (form(name, params), name, params)
        for name, params in [
            ("chelsea.png", {"methods": ["saliency", "guided_backprop"], "target": "Egyptian cat"}),
            ("coffee.png", {"methods": [{"method": "saliency", "id": str(k), "target": k} for k in (967, 504)]}),
            ("rocket.jpg", {"methods": [{"method": "occlusion", "options": COARSE}], "topk": 2}),
            ("coffee.png", {"neighbours": 3, "methods": ["deconvnet"], "target": 0}),
        ]
    ),
    (
        raw("motorcycle_left.png", f"explanations/{BATCHED}/1.0/grad_cam"),
        "motorcycle_left.png",
        {"methods": ["grad_cam"]},
    ),
    (raw("rocket.jpg"), "rocket.jpg", {}),
]


def assert_is(body: dict[str, Any], wanted: Reply) -> None:
    """The server's answer is the engine's, but for the order in which a batch adds."""
    assert [one["index"] for one in body["predictions"]] == [one.index for one in wanted.predictions]
    for one, other in zip(body["predictions"], wanted.predictions, strict=True):
        assert one["label"] == other.label
        assert one["probability"] == pytest.approx(other.probability, rel=1e-4, abs=1e-5)
    assert [one["id"] for one in body["explanations"]] == [one.id for one in wanted.explanations]
    for one, other in zip(body["explanations"], wanted.explanations, strict=True):
        assert one["options"] == other.result.options
        if isinstance(other.result, Neighbourhood):
            assert_same_neighbours(one["neighbours"], other.result)
        else:
            assert_same_attribution(one, other.result)


def assert_same_neighbours(found: list[dict[str, Any]], wanted: Neighbourhood) -> None:
    neighbours = wanted.neighbours_NM[0]
    assert [one["id"] for one in found] == [one.id for one in neighbours]
    assert [one["distance"] for one in found] == pytest.approx([one.distance for one in neighbours], rel=1e-5)
    assert [base64.b64decode(one["thumbnail"]["data"]) for one in found] == [one.thumbnail for one in neighbours]


def assert_same_attribution(found: dict[str, Any], wanted: Attribution) -> None:
    assert found["target"] == wanted.target_N[0]
    # A logit near 0 is a difference of terms near 10.
    assert found["target_score"] == pytest.approx(float(wanted.score_N[0]), rel=1e-5, abs=1e-4)
    values_CHW = array(found["array"])
    assert values_CHW.dtype == np.dtype("<f4")
    assert_same_map(values_CHW, wanted.values_NCHW[0])


def expected(live: Live, name: str, params: dict[str, Any]) -> Reply:
    (reply,) = live.engine.run([Request(image.decode(photograph(name)), parse_params(params))])
    assert isinstance(reply, Reply)
    return reply


def test_a_mixed_batch_with_a_corrupt_picture_gives_each_its_own_right_answer(live: Live) -> None:
    pids = live.pids()
    corrupt = {"path": f"explanations/{BATCHED}", "content": CORRUPT}
    *found, refused = live.together(*(sent for sent, _, _ in MIXED), corrupt)

    assert refused.status_code == 400
    error = strict(refused.content)
    assert set(error) == {"code", "type", "message", "field", "request_id"}
    assert (error["code"], error["type"]) == (400, "ImageError")

    # Rows of one batch are timed together, to the microsecond.
    assert [one.status_code for one in found] == [200] * len(found), [one.text[:200] for one in found]
    bodies = [strict(one.content) for one in found]
    clocks = [json.dumps(body["timing_ms"]) for body in bodies]
    assert max(map(clocks.count, clocks)) > 1, "no two requests shared a batch"

    for body, (_, name, params) in zip(bodies, MIXED, strict=True):
        assert_is(body, expected(live, name, params))
    assert live.pids() == pids


def test_eight_at_once_for_eight_targets_share_their_passes(live: Live) -> None:
    targets = [282, 285, 967, 504, 657, 0, 999, 671]
    sent = [form("chelsea.png", {"methods": ["saliency"], "target": k, "output": ["array"]}) for k in targets]
    bodies = [strict(one.content) for one in live.together(*sent)]
    for body, target in zip(bodies, targets, strict=True):
        (one,) = body["explanations"]
        assert one["target"] == target
        assert_is(body, expected(live, "chelsea.png", {"methods": ["saliency"], "target": target}))
    metas = [body["explanations"][0]["meta"] for body in bodies]
    assert all((meta["forwards"], meta["backwards"]) == (1, 1) for meta in metas)
    assert len({json.dumps(body["timing_ms"]) for body in bodies}) < len(bodies)


def test_the_explanations_route_answers_with_the_archives_own_methods(live: Live) -> None:
    body = live.answer(f"explanations/{QUICK}", content=photograph("coffee.png"))
    assert [one["id"] for one in body["explanations"]] == ["saliency", "guided_backprop", "occlusion", "neighbours"]
    assert_is(body, expected(live, "coffee.png", {"explain": True}))
    assert body["predictions"][0]["label"] == "espresso"
    assert body["explanations"][-1]["neighbours"][0]["label"] in OTHERS.values()


def test_the_predictions_route_answers_without_explanations(live: Live) -> None:
    body = live.answer(content=photograph())
    assert body["explanations"] == []
    assert body["predictions"][0]["label"] in ("tiger cat", "tabby", "Egyptian cat")
    assert body["model"] == {
        "name": QUICK,
        "version": "1.0",
        "weights_sha256": live.engine.model.spec.weights_sha256,
    }
    assert body["device"] == "cpu"


def test_overlays_are_pngs_of_the_models_crop(live: Live) -> None:
    body = live.explain({"methods": ["saliency"], "output": ["overlay", "heatmap"]})
    (one,) = body["explanations"]
    assert "array" not in one
    for kind in ("overlay", "heatmap"):
        assert one[kind]["media_type"] == "image/png"
        assert image.decode(base64.b64decode(one[kind]["data"])).size == (224, 224)


@pytest.mark.parametrize(
    ("params", "dtype", "shape"),
    [
        ({}, "<f4", [3, 224, 224]),
        ({"dtype": "<f2"}, "<f2", [3, 224, 224]),
        ({"reduce": "abs_max"}, "<f4", [1, 224, 224]),
        ({"reduce": "sum", "dtype": "<f2"}, "<f2", [1, 224, 224]),
    ],
)
def test_arrays_come_in_the_type_and_reduction_asked_for(
    live: Live, params: dict[str, Any], dtype: str, shape: list[int]
) -> None:
    (one,) = live.explain({"methods": ["saliency"], "output": ["array"], **params})["explanations"]
    assert (one["array"]["dtype"], one["array"]["shape"]) == (dtype, shape)
    values_CHW = expected(live, "chelsea.png", {"methods": ["saliency"]}).explanations[0].result.values_NCHW[0]
    reductions = {"none": values_CHW, "abs_max": np.abs(values_CHW).max(0), "sum": values_CHW.sum(0)}
    wanted = reductions[params.get("reduce", "none")].reshape(shape)
    # Float16 keeps eleven bits.
    tolerance = (1e-4 if dtype == "<f4" else 1e-3) * np.abs(wanted).max()
    np.testing.assert_allclose(array(one["array"]), wanted, atol=tolerance)


def test_a_picture_of_another_format_gets_the_answer_of_its_pixels(live: Live) -> None:
    picture = image.decode(photograph("coffee.png"))
    file = io.BytesIO()
    picture.save(file, "TIFF")
    body = live.answer(content=file.getvalue())
    assert_is(body, expected(live, "coffee.png", {}))
