"""Through a live TorchServe: KServe's routes, and every form of reply."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from live_server import BATCHED, QUICK, Live, array, assert_same_map, photograph
from PIL import Image
from safetensors.numpy import load

NAMES = ("chelsea.png", "coffee.png", "rocket.jpg")
TEXTS = [base64.b64encode(photograph(name)).decode() for name in NAMES]
SAFETENSORS, NPZ, PNG = "application/vnd.safetensors", "application/x-npz", "image/png"


def v2(*texts: str, **more: Any) -> dict[str, Any]:
    tensor = {"name": "data", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return {"inputs": [tensor], **more}


@pytest.fixture(scope="module")
def alone(live: Live) -> list[Any]:
    """The replies to the three pictures, each asked for by itself."""
    return [live.explain({"methods": ["saliency"], "output": ["array"]}, photograph(name)) for name in NAMES]


def assert_same_reply(found: Any, wanted: Any) -> None:
    assert [one["index"] for one in found["predictions"]] == [one["index"] for one in wanted["predictions"]]
    (mine,), (other,) = found["explanations"], wanted["explanations"]
    assert (mine["method"], mine["target"]) == (other["method"], other["target"])
    assert_same_map(array(mine["array"]), array(other["array"]))


@pytest.mark.parametrize("model", [QUICK, BATCHED])
def test_v1_predict_answers_every_instance_as_if_alone(live: Live, alone: list[Any], model: str) -> None:
    asked = {
        "instances": [{"data": {"b64": text}} for text in TEXTS],
        "params": {"methods": ["saliency"], "output": ["array"]},
    }
    body = live.answer(f"v1/models/{model}:predict", json=asked)
    for found, wanted in zip(body["predictions"], alone, strict=True):
        assert_same_reply(found, wanted)


@pytest.mark.parametrize("path", [f"v1/models/{QUICK}:explain", f"v1/models/{QUICK}:predict"])
def test_v1_explain_asks_for_the_default_explanations_and_predict_does_not(live: Live, path: str) -> None:
    (found,) = live.answer(path, json={"instances": [TEXTS[0]], "params": {"output": []}})["predictions"]
    wanted = ["saliency", "guided_backprop", "occlusion", "neighbours"] if "explain" in path else []
    assert [one["id"] for one in found["explanations"]] == wanted


def test_v2_infer_answers_in_tensors(live: Live, alone: list[Any]) -> None:
    asked = v2(*TEXTS, id="one", parameters={"methods": ["saliency"], "output": ["array"], "topk": 3})
    body = live.answer(f"v2/models/{QUICK}/infer", json=asked)
    outputs = {one["name"]: one for one in body["outputs"]}
    assert (body["id"], body["model_name"]) == ("one", QUICK)
    assert outputs["index"]["shape"] == [3, 3]
    for n, wanted in enumerate(alone):
        assert outputs["label"]["data"][3 * n] == wanted["predictions"][0]["label"]
        assert outputs["probability"]["data"][3 * n] == pytest.approx(wanted["predictions"][0]["probability"], rel=1e-4)
        found = json.loads(outputs["reply"]["data"][n])
        assert_same_reply(found, wanted | {"predictions": wanted["predictions"][:3]})


def test_v2_explain_asks_for_the_default_explanations(live: Live) -> None:
    body = live.answer(f"v2/models/{QUICK}/explain", json=v2(TEXTS[0], parameters={"output": []}))
    (reply,) = (json.loads(text) for one in body["outputs"] if one["name"] == "reply" for text in one["data"])
    assert len(reply["explanations"]) == 4


def test_one_bad_instance_refuses_its_own_body_and_no_neighbours(live: Live, alone: list[Any]) -> None:
    bad = {"instances": [TEXTS[0], "aGVsbG8="]}
    good = {"instances": [TEXTS[1]], "params": {"methods": ["saliency"], "output": ["array"]}}
    path = f"v1/models/{BATCHED}:predict"
    refused, answered = live.together({"path": path, "json": bad}, {"path": path, "json": good})
    assert (refused.status_code, refused.json()["field"]) == (400, "instances.1")
    assert_same_reply(answered.json()["predictions"][0], alone[1])


# --- forms of reply ---------------------------------------------------------------------------------------------------


def test_the_forms_of_a_reply_hold_the_same_numbers(live: Live) -> None:
    path = f"explanations/{QUICK}/1.0/guided_backprop"
    (one,) = live.answer(path, content=photograph())["explanations"]
    replies = {form: live.ask(path, content=photograph(), headers={"Accept": form}) for form in (PNG, SAFETENSORS, NPZ)}
    assert {form: (got.status_code, got.headers["content-type"]) for form, got in replies.items()} == {
        form: (200, form) for form in replies
    }
    wanted = array(one["array"])
    assert_same_map(load(replies[SAFETENSORS].content)["guided_backprop"], wanted)
    assert_same_map(np.load(io.BytesIO(replies[NPZ].content))["guided_backprop"], wanted)
    found, picture = (
        np.asarray(Image.open(io.BytesIO(png)), int)
        for png in (replies[PNG].content, base64.b64decode(one["overlay"]["data"]))
    )
    assert np.abs(found - picture).max() <= 3  # a batch of another size: other last digits of the map


def test_a_batch_mixes_forms_of_reply_and_errors(live: Live) -> None:
    path = f"explanations/{BATCHED}/1.0/saliency"
    forms = ["application/json", PNG, SAFETENSORS, NPZ, "text/html"]
    sent = [{"path": path, "content": photograph(), "headers": {"Accept": form}} for form in forms]
    got = live.together(*sent, {"path": f"predictions/{BATCHED}", "content": photograph(), "headers": {"Accept": PNG}})
    assert [one.status_code for one in got] == [200, 200, 200, 200, 406, 422]
    assert [one.headers["content-type"] for one in got] == [*forms[:4], "application/json", "application/json"]
    assert got[5].json()["field"] == "methods"


def test_an_error_is_json_whatever_form_was_asked_for(live: Live) -> None:
    got = live.ask(f"explanations/{QUICK}/1.0/saliency", content=b"none", headers={"Accept": SAFETENSORS})
    assert (got.status_code, got.headers["content-type"], got.json()["code"]) == (400, "application/json", 400)


def test_an_overlay_in_the_size_of_the_original(live: Live) -> None:
    form = {"data": ("a", photograph("rocket.jpg")), "params": (None, '{"methods": ["grad_cam"], "size": "original"}')}
    got = live.ask(f"predictions/{QUICK}", files=form, headers={"Accept": PNG})
    assert Image.open(io.BytesIO(got.content)).size == (640, 427)
