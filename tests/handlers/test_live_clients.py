"""Through a live TorchServe: every client's style of sending a picture gets the same answer."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import PHOTOGRAPHS, QUICK, Live, photograph, strict

from convlens import image
from convlens.cli.photographs import OTHERS
from convlens.client import Client, RemoteError
from convlens.errors import ServerError
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.torchserve.server_config import free_ports
from convlens.types import Attribution

PICTURE = photograph()
BASE64 = base64.b64encode(PICTURE).decode()
JSON = {"content-type": "application/json"}
TWO = {"topk": 2}


def as_json(**body: Any) -> dict[str, Any]:
    return {"content": json.dumps(body).encode(), "headers": JSON}


PREDICTIONS: dict[str, dict[str, Any]] = {
    "curl -T (PUT)": {"method": "PUT", "content": PICTURE},
    "POST": {"content": PICTURE},
    "POST as image/png": {"content": PICTURE, "headers": {"content-type": "image/png"}},
    "POST as octets": {"content": PICTURE, "headers": {"content-type": "application/octet-stream"}},
    "curl -F data=@": {"files": {"data": ("chelsea.png", PICTURE, "image/png")}},
    "form without a file name": {"files": {"data": (None, PICTURE)}},
    "JSON b64": as_json(data={"b64": BASE64}),
    "JSON text": as_json(data=BASE64),
    "JSON with a charset": as_json(data=BASE64) | {"headers": {"content-type": "application/json; charset=utf-8"}},
    "JSON in capitals": as_json(data=BASE64) | {"headers": {"content-type": "Application/JSON"}},
    "JSON with a byte order mark": {"content": b"\xef\xbb\xbf" + as_json(data=BASE64)["content"], "headers": JSON},
}
WITH_PARAMS: dict[str, dict[str, Any]] = {
    "curl -F params=": {"files": {"data": ("a", PICTURE), "params": (None, json.dumps(TWO))}},
    "params first": {"files": [("params", (None, json.dumps(TWO))), ("data", ("a", PICTURE))]},
    "params as typed JSON": {"files": {"data": ("a", PICTURE), "params": ("p", json.dumps(TWO), "application/json")}},
    "params as a file": {"files": {"data": ("a", PICTURE), "params": ("p.txt", json.dumps(TWO), "text/plain")}},
    "JSON with params": as_json(data={"b64": BASE64}, params=TWO),
    "JSON with params as text": as_json(data={"b64": BASE64}, params=json.dumps(TWO)),
}


@pytest.fixture(scope="module")
def predicted(live: Live) -> list[dict[str, Any]]:
    """The engine's own five predictions."""
    (reply,) = live.engine.run([Request(image.decode(PICTURE), parse_params({}))])
    return [{"index": one.index, "label": one.label, "probability": one.probability} for one in reply.predictions]


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [(one["index"], one["label"]) for one in found] == [(one["index"], one["label"]) for one in wanted]
    wanted_N = [one["probability"] for one in wanted]
    assert [one["probability"] for one in found] == pytest.approx(wanted_N, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("style", PREDICTIONS)
def test_every_style_of_sending_a_picture_is_answered_alike(
    live: Live, predicted: list[dict[str, Any]], style: str
) -> None:
    assert_same(live.answer(**PREDICTIONS[style])["predictions"], predicted)


@pytest.mark.parametrize("style", WITH_PARAMS)
def test_every_style_of_sending_params_is_answered_alike(
    live: Live, predicted: list[dict[str, Any]], style: str
) -> None:
    assert_same(live.answer(**WITH_PARAMS[style])["predictions"], predicted[:2])


COARSE = {"method": "occlusion", "options": {"window": 112, "stride": 112}}
EXPLAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "the method in the path of explanations": (f"explanations/{QUICK}/1.0/grad_cam", {"content": PICTURE}),
    "the method in the path of predictions": (f"predictions/{QUICK}/1.0/grad_cam", {"content": PICTURE}),
    "params of predictions": (
        f"predictions/{QUICK}",
        {"files": {"data": ("a", PICTURE), "params": (None, '{"methods": ["grad_cam"]}')}},
    ),
    "params of explanations": (
        f"explanations/{QUICK}",
        {"files": {"data": ("a", PICTURE), "params": (None, '{"methods": [{"method": "grad_cam"}]}')}},
    ),
    "JSON": (f"explanations/{QUICK}", as_json(data={"b64": BASE64}, params={"methods": ["grad_cam"]})),
}


@pytest.mark.parametrize("style", EXPLAINED)
def test_every_style_of_asking_for_one_method_is_answered_alike(live: Live, style: str) -> None:
    path, sent = EXPLAINED[style]
    (one,) = live.answer(path, **sent)["explanations"]
    (wanted,) = live.explain({"methods": ["grad_cam"]})["explanations"]
    assert one["array"] == wanted["array"]
    assert one["target"] == wanted["target"]


def test_a_path_method_takes_no_method_from_params_besides(live: Live) -> None:
    form = {"data": ("a", PICTURE), "params": (None, '{"methods": ["saliency"]}')}
    body = live.answer(f"explanations/{QUICK}/1.0/grad_cam", status=422, files=form)
    assert "name them in one place" in body["message"]


@pytest.mark.parametrize("headers", [{}, {"explain": "True", "url_path": "grad_cam"}, {"Explain": "true"}])
def test_headers_of_a_client_do_not_turn_predictions_into_explanations(live: Live, headers: dict[str, str]) -> None:
    assert live.answer(content=PICTURE, headers=headers)["explanations"] == []


def test_without_a_token_there_is_no_answer(live: Live) -> None:
    got = live.client.post(f"{live.server.inference_url}/predictions/{QUICK}", content=PICTURE)
    assert got.status_code == 400
    assert "tiger" not in got.text


# --- curl itself ------------------------------------------------------------------------------------------------------

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


def curl(live: Live, *arguments: str, path: str = f"predictions/{QUICK}") -> tuple[int, Any]:
    token = live.server.headers("inference")["Authorization"]
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "-H", "@-", "-w", "\n%{http_code}", *arguments,
         f"{live.server.inference_url}/{path}"],
        input=f"Authorization: {token}\n", capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    text, _, status = done.stdout.rpartition("\n")
    return int(status), strict(text)


@needs_curl
@pytest.mark.parametrize(
    "arguments",
    [["-T", str(PHOTOGRAPHS / "chelsea.png")], ["-F", f"data=@{PHOTOGRAPHS / 'chelsea.png'}"]],
    ids=["-T", "-F"],
)
def test_curl_as_the_documentation_says(live: Live, predicted: list[dict[str, Any]], arguments: list[str]) -> None:
    status, body = curl(live, *arguments)
    assert status == 200
    assert_same(body["predictions"], predicted)


@needs_curl
def test_curl_with_params(live: Live) -> None:
    params = json.dumps({"methods": [{"method": "saliency"}, COARSE], "output": ["overlay"]})
    status, body = curl(live, "-F", f"data=@{PHOTOGRAPHS / 'chelsea.png'}", "-F", f"params={params}")
    assert status == 200
    assert [one["id"] for one in body["explanations"]] == ["saliency", "occlusion"]


@needs_curl
def test_curl_with_data_binary_is_told_what_to_use_instead(live: Live, tmp_path: Path) -> None:
    # Of most photographs TorchServe itself cannot make a form (500, ErrorDataDecoderException); of this one it can.
    (tmp_path / "grey.png").write_bytes(image.encode_png(np.full((8, 8, 3), 9, np.uint8)))
    status, body = curl(live, "--data-binary", f"@{tmp_path / 'grey.png'}")
    assert status == 415
    assert body["type"] == "MediaTypeError"
    assert "-T cat.jpg" in body["message"]
    status, body = curl(live, "--data-binary", f"@{PHOTOGRAPHS / 'chelsea.png'}")
    assert status in (415, 500)


# --- our own client ---------------------------------------------------------------------------------------------------


def own(live: Live, **options: Any) -> Client:
    return Client(live.server.inference_url, **{"model": QUICK, "key_file": live.server.key_file, **options})


def test_our_own_client_reads_what_it_asked_for(live: Live) -> None:
    with own(live) as client:
        reply = client.explain(PICTURE, methods=["saliency"], neighbours=2, request_id="r-1")
    assert reply.request_id == "r-1"
    saliency, neighbours = (one.result for one in reply.explanations)
    assert isinstance(saliency, Attribution)
    assert saliency.values_NCHW.shape == (1, 3, 224, 224)
    first, second = (one.label for one in neighbours.neighbours_NM[0])
    assert first != second and {first, second} <= set(OTHERS.values())


REFUSED: dict[str, tuple[dict[str, Any], bytes, dict[str, Any], int, str]] = {
    "params": ({}, PICTURE, {"topk": 0}, 422, "topk: input should be greater"),
    "the picture": ({}, b"none", {}, 400, "is not an image"),
    "the model": ({"model": "nosuch"}, PICTURE, {}, 404, "Model not found: nosuch"),
    "the token": ({"key_file": None}, PICTURE, {}, 400, "Token Authorization failed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_our_own_client_tells_the_servers_reason(live: Live, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVLENS_TOKEN", raising=False)
    options, picture, params, status, message = REFUSED[what]
    with own(live, **options) as client, pytest.raises(RemoteError) as caught:
        client.explain(picture, **params)
    assert caught.value.status == status
    assert message in caught.value.message


def test_our_own_client_says_when_no_server_answers() -> None:
    with (
        Client(f"http://127.0.0.1:{free_ports().inference}", model=QUICK) as client,
        pytest.raises(ServerError, match=r"no answer from http://127\.0\.0\.1.*is the server running\?"),
    ):
        client.explain(PICTURE)
