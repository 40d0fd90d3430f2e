"""Clients that know KServe's protocols and nothing of ConvLens, against a live TorchServe and the proxy before it.

Triton's client is the real one. KServe's is not installed, because it takes no newer protobuf than 6, pandas than 2 and
psutil than 5; its calls are made as its class InferenceRESTClient makes them (kserve 0.21).
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from live_server import QUICK, Live, array, assert_same_map, photograph
from nginx_proxy import ALICE, INSTALLED, running_proxy
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from convlens import image
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Attribution, Reply

NAMES = ("chelsea.png", "coffee.png")
FILES = [photograph(name) for name in NAMES]
TEXTS = [base64.b64encode(file).decode() for file in FILES]
LENGTH = "inference-header-content-length"
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Door:
    """Where clients ask, and with which token. ``complete``: whether it has the routes that TorchServe lacks."""

    url: str
    headers: dict[str, str]
    complete: bool


@pytest.fixture(scope="module")
def torchserve(live: Live) -> Door:
    return Door(live.server.inference_url, live.server.headers("inference"), complete=False)


@pytest.fixture(scope="module")
def proxy(live: Live) -> Iterator[Door]:
    if not INSTALLED:
        pytest.skip("needs nginx and openssl")
    with running_proxy(live.server, PROXY_TLS="none") as started:
        yield Door(f"http://127.0.0.1:{started.port}", {"Authorization": f"Bearer {ALICE}"}, complete=True)


@pytest.fixture(scope="module", params=["torchserve", "proxy"])
def door(request: pytest.FixtureRequest) -> Door:
    found: Door = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def wanted(live: Live) -> list[Reply]:
    """What the engine says without a server."""
    params = parse_params({"methods": ["saliency"], "output": ["array"], "topk": 3})
    replies = live.engine.run([Request(image.decode(file), params) for file in FILES])
    assert all(isinstance(reply, Reply) for reply in replies)
    return [reply for reply in replies if isinstance(reply, Reply)]


# --- Triton's client --------------------------------------------------------------------------------------------------


class Triton:
    """Triton's client at a door, with the door's token in each call."""

    def __init__(self, door: Door) -> None:
        self._client = InferenceServerClient(door.url.removeprefix("http://"))
        self._door = door

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        return lambda *given, **options: call(*given, headers=dict(self._door.headers), **options)

    def infer(self, files: list[bytes], *, model: str = QUICK, binary: bool = True, **options: Any) -> InferResult:
        tensor = InferInput("data", [len(files)], "BYTES")
        elements = files if binary else [base64.b64encode(file) for file in files]
        tensor.set_data_from_numpy(np.array(elements, object), binary_data=binary)
        return self._client.infer(model, [tensor], headers=dict(self._door.headers), **options)


@pytest.fixture(scope="module")
def triton(door: Door) -> Triton:
    return Triton(door)


def named(*, binary: bool) -> list[InferRequestedOutput]:
    return [InferRequestedOutput(name, binary_data=binary) for name in ("index", "label", "probability")]


def texts(values: np.ndarray) -> list[str]:
    return [one.decode() if isinstance(one, bytes) else one for one in values.ravel().tolist()]


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("outputs", [None, named(binary=True), named(binary=False)], ids=["all", "binary", "json"])
def test_triton_s_client_gets_the_engine_s_predictions(
    triton: Triton, wanted: list[Reply], binary_input: bool, outputs: list[InferRequestedOutput] | None
) -> None:
    result = triton.infer(FILES, binary=binary_input, outputs=outputs, request_id="r-7", parameters={"topk": 3})
    assert result.get_response()["id"] == "r-7"
    assert result.get_response()["model_name"] == QUICK
    predictions = [prediction for reply in wanted for prediction in reply.predictions]
    assert result.as_numpy("index").tolist() == [[one.index for one in reply.predictions] for reply in wanted]
    assert texts(result.as_numpy("label")) == [one.label for one in predictions]
    found = result.as_numpy("probability").ravel()
    np.testing.assert_allclose(found, [one.probability for one in predictions], rtol=1e-4)


def test_triton_s_client_gets_the_engine_s_explanations(triton: Triton, wanted: list[Reply]) -> None:
    params = json.dumps({"methods": ["saliency"], "output": ["array"]})
    result = triton.infer(FILES, outputs=[InferRequestedOutput("reply")], parameters={"params": params})
    for text, reply in zip(texts(result.as_numpy("reply")), wanted, strict=True):
        (explained,) = json.loads(text)["explanations"]
        attribution = reply.explanations[0].result
        assert isinstance(attribution, Attribution)
        assert_same_map(array(explained["array"]), attribution.values_NCHW[0])


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"files": [b"no picture"]}, "400", "is not an image"),
        ({"files": FILES[:1], "parameters": {"topk": 0}}, "422", "topk"),
        ({"files": FILES[:1], "priority": 1}, "422", "priority"),
        ({"files": FILES[:1], "timeout": 1000}, "422", "timeout"),
        ({"files": FILES[:1], "sequence_id": 1}, "422", "sequence"),
        ({"files": FILES[:1], "outputs": [InferRequestedOutput("logits")]}, "422", "no output 'logits'"),
        ({"files": FILES[:1], "outputs": [InferRequestedOutput("label", class_count=3)]}, "422", "classification"),
        ({"files": FILES[:1], "request_compression_algorithm": "gzip"}, "415", "gzip"),
        ({"files": FILES[:1] * 17}, "422", "at most 16"),
    ],
)
def test_triton_s_client_raises_the_service_s_message(
    triton: Triton, asked: dict[str, Any], status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton.infer(**asked)
    assert caught.value.status() == status
    assert message in caught.value.message()


def test_health_and_metadata_are_there_for_triton_s_client_where_a_proxy_is(door: Door, triton: Triton) -> None:
    asked = (triton.is_server_live(), triton.is_server_ready(), triton.is_model_ready(QUICK))
    assert asked == (door.complete,) * 3
    assert triton.is_model_ready(QUICK, "1.0") == door.complete
    assert not triton.is_model_ready("nobody")


def test_triton_s_client_reads_what_the_proxy_s_server_and_its_models_are(proxy: Door) -> None:
    triton = Triton(proxy)
    assert triton.get_server_metadata()["name"] == "convlens"
    described = triton.get_model_metadata(QUICK)
    assert (described["name"], described["versions"], described["platform"]) == (QUICK, ["1.0"], "pytorch")
    assert described["inputs"] == [{"name": "data", "datatype": "BYTES", "shape": [-1]}]
    assert triton.get_model_metadata(QUICK, "1.0") == described
    result = triton.infer(FILES, outputs=[InferRequestedOutput(one["name"]) for one in described["outputs"]])
    for one in described["outputs"]:
        assert result.get_output(one["name"])["datatype"] == one["datatype"]
        assert len(result.get_output(one["name"])["shape"]) == len(one["shape"])


def test_a_version_in_the_path_is_understood_where_a_proxy_is(door: Door, triton: Triton) -> None:
    if door.complete:
        assert triton.infer(FILES[:1], model_version="1.0").as_numpy("label").shape == (1, 5)
    with pytest.raises(InferenceServerException) as caught:
        triton.infer(FILES[:1], model_version="9.9")
    assert caught.value.status() == "404"


@pytest.mark.parametrize("call", ["get_model_config", "get_inference_statistics"])
def test_extensions_of_triton_s_are_not_there(triton: Triton, call: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        getattr(triton, call)(QUICK)
    assert caught.value.status() in ("404", "405")


# --- KServe's client --------------------------------------------------------------------------------------------------


def kserve_request(**more: Any) -> dict[str, Any]:
    """What KServe's InferRequest.to_rest makes of a tensor of base64 texts."""
    tensor = {"name": "data", "shape": [len(TEXTS)], "datatype": "BYTES", "data": TEXTS}
    return {"id": str(uuid.uuid4()), "model_name": QUICK, "inputs": [tensor], **more}


def labels(body: dict[str, Any]) -> list[str]:
    (tensor,) = [output["data"] for output in body["outputs"] if output["name"] == "label"]
    return list(tensor)


def test_kserve_s_infer_of_version_2(door: Door, http: httpx.Client, wanted: list[Reply]) -> None:
    asked = kserve_request(parameters={"topk": 3})
    answer = http.post(f"{door.url}/v2/models/{QUICK}/infer", json=asked, headers=door.headers)
    assert answer.status_code == 200, answer.text
    assert LENGTH not in answer.headers
    assert answer.json()["id"] == asked["id"]
    assert labels(answer.json()) == [one.label for reply in wanted for one in reply.predictions]


def test_kserve_s_infer_of_version_2_with_bytes(door: Door, http: httpx.Client, wanted: list[Reply]) -> None:
    elements = b"".join(len(file).to_bytes(4, "little") + file for file in FILES)
    parameters = {"binary_data_size": len(elements)}
    tensor = {"name": "data", "shape": [len(FILES)], "datatype": "BYTES", "parameters": parameters}
    text = json.dumps(kserve_request(inputs=[tensor], parameters={"topk": 3, "binary_data_output": True})).encode()
    headers = {LENGTH: str(len(text)), "content-type": "application/octet-stream"}
    answer = http.post(f"{door.url}/v2/models/{QUICK}/infer", content=text + elements, headers=door.headers | headers)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    outputs = json.loads(answer.content[:length])["outputs"]
    sizes = [output["parameters"]["binary_data_size"] for output in outputs]
    assert [output["name"] for output in outputs[:1]] == ["index"]
    assert length + sum(sizes) == len(answer.content)
    found = np.frombuffer(answer.content[length : length + sizes[0]], "<i8")
    assert found.tolist() == [one.index for reply in wanted for one in reply.predictions]


def test_kserve_s_predict_of_version_1(door: Door, http: httpx.Client, wanted: list[Reply]) -> None:
    asked = {"instances": [{"data": {"b64": text}} for text in TEXTS]}
    answer = http.post(f"{door.url}/v1/models/{QUICK}:predict", json=asked, headers=door.headers)
    found = [reply["predictions"][0]["label"] for reply in answer.json()["predictions"]]
    assert found == [reply.predictions[0].label for reply in wanted]


def test_kserve_s_explain_of_version_1(door: Door, http: httpx.Client, wanted: list[Reply]) -> None:
    asked = {"instances": [TEXTS[0]], "params": {"methods": ["saliency"], "output": ["array"]}}
    answer = http.post(f"{door.url}/v1/models/{QUICK}:explain", json=asked, headers=door.headers)
    (reply,) = answer.json()["predictions"]
    attribution = wanted[0].explanations[0].result
    assert isinstance(attribution, Attribution)
    assert_same_map(array(reply["explanations"][0]["array"]), attribution.values_NCHW[0])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"v2/models/{QUICK}/infer", {"inputs": []}),
        (f"v2/models/{QUICK}/explain", kserve_request(parameters={"methods": ["salency"]})),
        (f"v1/models/{QUICK}:predict", {"instances": []}),
        (f"v1/models/{QUICK}:explain", {"instances": ["aGVsbG8="]}),
    ],
)
def test_errors_of_the_service_stand_where_kserve_s_client_looks(
    door: Door, http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    answer = http.post(f"{door.url}/{path}", json=body, headers=door.headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"] == answer.json()["message"]


def test_other_errors_keep_their_form(door: Door, http: httpx.Client) -> None:
    answer = http.post(f"{door.url}/predictions/{QUICK}", content=b"no picture", headers=door.headers)
    assert set(answer.json()) == {"code", "type", "message", "field", "request_id"}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("v2/health/live", "live"),
        ("v2/health/ready", "ready"),
        (f"v2/models/{QUICK}/ready", "ready"),
        (f"v2/models/{QUICK}/versions/1.0/ready", "ready"),
        (f"v1/models/{QUICK}", "ready"),
    ],
)
def test_kserve_s_health_at_the_proxy(proxy: Door, http: httpx.Client, path: str, key: str) -> None:
    assert http.get(f"{proxy.url}/{path}", headers=proxy.headers).json()[key] is True


def test_kserve_s_client_of_version_1_finds_the_proxy_alive(proxy: Door, http: httpx.Client) -> None:
    assert http.get(f"{proxy.url}/").json()["status"].lower() == "alive"
    assert QUICK in http.get(f"{proxy.url}/v1/models").json()["models"]


@pytest.mark.parametrize(
    "path", ["v2/models/nobody", "v2/models/nobody/ready", "v2/models/convlens/versions/9.9/ready"]
)
def test_a_model_that_is_not_there_is_not_ready(proxy: Door, http: httpx.Client, path: str) -> None:
    answer = http.get(f"{proxy.url}/{path}", headers=proxy.headers)
    assert answer.status_code == 404
    assert "no such path, model or version" in answer.json()["error"]


@pytest.mark.parametrize("path", ["v2/health/ready", f"v2/models/{QUICK}", f"v2/models/{QUICK}/ready"])
def test_what_asks_a_worker_needs_a_token(proxy: Door, http: httpx.Client, path: str) -> None:
    answer = http.get(f"{proxy.url}/{path}")
    assert (answer.status_code, "error" in answer.json()) == (401, True)


# --- the protocol without a client ------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", ["metadata", "ready"])
def test_a_model_describes_itself_to_whom_asks_torchserve(
    torchserve: Door, proxy: Door, http: httpx.Client, aspect: str
) -> None:
    url = f"{torchserve.url}/v2/models/{QUICK}/infer"
    body = http.post(url, json={"describe": aspect}, headers=torchserve.headers).json()
    path = f"v2/models/{QUICK}" + ("" if aspect == "metadata" else "/ready")
    assert body == http.get(f"{proxy.url}/{path}", headers=proxy.headers).json()
    assert body["name"] == QUICK


def test_another_word_to_describe_is_refused(torchserve: Door, http: httpx.Client) -> None:
    url = f"{torchserve.url}/v2/models/{QUICK}/infer"
    answer = http.post(url, json={"describe": "metdata"}, headers=torchserve.headers)
    assert (answer.status_code, answer.json()["field"]) == (422, "describe")
    assert "did you mean metadata" in answer.json()["message"]


def test_describing_leaves_the_rest_of_a_batch_alone(live: Live) -> None:
    sent = [{"path": "predictions/batched", "json": {"describe": "ready"}}] * 3
    *described, predicted = live.together(*sent, {"path": "predictions/batched", "content": FILES[0]})
    assert [one.json() for one in described] == [{"name": "batched", "ready": True}] * 3
    assert predicted.json()["predictions"][0]["label"] == "tiger cat"


def test_torchserve_answers_no_page_at_its_root(torchserve: Door, http: httpx.Client) -> None:
    assert http.get(f"{torchserve.url}/", headers=torchserve.headers).status_code == 405
