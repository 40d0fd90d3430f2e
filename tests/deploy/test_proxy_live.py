"""What the proxy lets through to a real TorchServe, and what it refuses."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import httpx
import pytest
from nginx_proxy import ALICE, BOB, INSTALLED, Proxy, running_proxy

import convlens
from convlens.client.protocol.inference_pb2 import PredictionsRequest
from convlens.client.protocol.inference_pb2_grpc import InferenceAPIsServiceStub
from convlens.torchserve import server_config
from convlens.torchserve.server import Server

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs nginx and openssl")


def refused(answer: httpx.Response, code: int) -> str:
    """The message of a refusal in the service's own form."""
    assert answer.status_code == code, answer.text[:300]
    body = answer.json()
    assert set(body) == {"code", "type", "message", "field", "request_id"}
    assert body["code"] == code
    return str(body["message"])


@pytest.mark.parametrize(
    "path", ["predictions/convlens", "explanations/convlens", "predictions/convlens/1.0", "v1/models/convlens:predict"]
)
def test_a_client_s_token_is_exchanged_for_the_server_s_and_the_time_of_sending_added(
    proxy: Proxy, echo: Server, path: str
) -> None:
    before = time.time()
    answer = proxy.ask(path, body=b"picture", **{"X-Request-Start": "t=1"})
    assert answer.status_code == 200, answer.text
    headers = {name.lower(): value for name, value in answer.json()["headers"].items()}
    assert headers["authorization"] == f"Bearer {echo.token('inference')}"
    sent_at = headers["x-request-start"]
    assert sent_at.startswith("t=") and before - 0.01 <= float(sent_at[2:]) <= time.time()


def test_a_put_as_curl_sends_it_passes(proxy: Proxy) -> None:
    assert proxy.ask(method="PUT", body=b"picture").json()["bytes"] == 7
    assert "POST or PUT" in refused(proxy.ask(method="GET", body=None), 405)


@pytest.mark.parametrize("token", [None, "wrong", ALICE + "x", ALICE[:-1]])
def test_without_a_known_token_nothing_reaches_the_server(proxy: Proxy, token: str | None) -> None:
    answer = proxy.ask(token=token)
    assert "Bearer TOKEN" in refused(answer, 401)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_server_s_own_token_is_not_a_client_s(proxy: Proxy, echo: Server) -> None:
    refused(proxy.ask(token=echo.token("inference")), 401)


@pytest.mark.parametrize(
    "path",
    ["models", "models/convlens", "token", "metrics", "api-description", "predictions/../models", "workflows/x",
     "predictions/%2e%2e/models", "predictions%2F..%2Fmodels", "v2/repository/index", "wfpredict/x",
     "describe/ready/convlens", "alive", "entry_ready/convlens", "help.json", "help_models.json", "page/help.html"],
)  # fmt: skip
def test_no_other_path_is_there(proxy: Proxy, path: str) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as plain:  # httpx would tidy the path
        trusted = ssl.create_default_context(cafile=str(proxy.certificate))
        with trusted.wrap_socket(plain, server_hostname="localhost") as secure:
            lines = [f"GET /{path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {ALICE}", "Connection: close"]
            secure.sendall("\r\n".join([*lines, "", ""]).encode())
            answer = b"".join(iter(lambda: secure.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]
    assert b"no such path" in answer


@pytest.mark.parametrize("path", ["", "help"])
def test_a_browser_gets_a_page_that_says_what_is_served_and_how_to_ask(proxy: Proxy, path: str) -> None:
    answer = proxy.ask(path, token=None, method="GET", body=None, Accept="text/html,*/*;q=0.8")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for said in ("<code>convlens</code>", "<code>other</code>", "https://HOST/predictions/convlens"):
        assert said in answer.text
    assert "@" not in re.sub("(T|data=)?@cat.jpg", "", answer.text), "placeholders are filled in"
    # No inline script or style, and what the page asks for is there.
    assert not re.search(r"<script|<style| style=| on\w+=", answer.text)
    assert "style-src 'self'" in answer.headers["content-security-policy"]
    for asked in re.findall(r'(?:href|src)="/([^"]+)"', answer.text):
        assert proxy.ask(asked, token=None, method="GET", body=None).status_code == 200


@pytest.mark.parametrize("path", ["", "help"])
def test_a_program_gets_the_same_as_json(proxy: Proxy, path: str) -> None:
    body = proxy.ask(path, token=None, method="GET", body=None).json()
    assert (body["status"], body["models"], body["version"]) == ("alive", ["convlens", "other"], convlens.__version__)


def test_names_of_models_can_be_set(echo: Server) -> None:
    with running_proxy(echo, PROXY_MODELS='cats dogs";<b>') as proxy:
        assert proxy.ask("v1/models", token=None, method="GET", body=None).json() == {"models": ["cats", "dogsb"]}


@pytest.mark.parametrize(
    ("models", "status"),
    [("convlens", 200), ("convlens other", 200), ("convlens nobody", 503), ("nobody convlens", 503),
     ("convlens other " * 4, 200), ("convlens " * 7 + "nobody", 503)],
)  # fmt: skip
def test_the_server_is_ready_while_every_model_answers(echo: Server, models: str, status: int) -> None:
    with running_proxy(echo, PROXY_MODELS=models) as proxy:
        answer = proxy.ask("v2/health/ready", method="GET", body=None)
        assert answer.status_code == status, answer.text
        assert answer.json() == {"ready": True} if status == 200 else "not ready" in answer.json()["error"]
        assert proxy.ask("v2/health/ready", token=None, method="GET", body=None).status_code == 401


def test_a_version_in_kserve_s_path_becomes_torchserve_s(proxy: Proxy) -> None:
    answer = proxy.ask("v2/models/convlens/versions/1.0/explain", body=b"picture").json()
    assert (answer["headers"]["explain"], answer["bytes"]) == ("True", 7)


def test_health_and_metadata_of_kserve_ask_the_worker(proxy: Proxy) -> None:
    for path in ("v2/models/other", "v2/models/other/versions/1.0", "v2/models/other/ready", "v1/models/other"):
        # The entry says what reached it: the JSON object of a description.
        assert proxy.ask(path, method="GET", body=None).json()["bytes"] == len('{"describe": ""}') + (
            5 if path.endswith("ready") or path.startswith("v1") else 8
        )
        assert "POST or PUT" in proxy.ask(path, method="DELETE", body=None).json()["message"]


def test_ping_needs_no_token(proxy: Proxy) -> None:
    assert proxy.ask("ping", token=None, method="GET", body=None).json() == {"status": "Healthy"}


def test_a_body_just_below_the_limit_passes_and_one_above_is_refused(proxy: Proxy) -> None:
    largest = int(server_config.read(server_config.committed())["max_request_size"])
    below = proxy.ask(body=bytes(largest - 1000))
    assert below.status_code == 200, below.text
    assert below.json()["bytes"] == largest - 1000
    assert "32 MiB" in refused(proxy.ask(body=bytes(largest + 1)), 413)


def begun_upload(proxy: Proxy, stack: ExitStack, *, length: int) -> ssl.SSLSocket:
    """An upload of so many bytes, of which the first have been sent."""
    trusted = ssl.create_default_context(cafile=str(proxy.certificate))
    plain = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=20))
    upload = stack.enter_context(trusted.wrap_socket(plain, server_hostname="localhost"))
    head = f"PUT /predictions/convlens HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {BOB}\r\n"
    upload.sendall(f"{head}Content-Length: {length}\r\n\r\nfirst".encode())
    return upload


def test_of_large_uploads_a_few_are_held_and_small_requests_pass_beside_them(proxy: Proxy) -> None:
    with ExitStack() as stack:
        for _ in range(24):
            begun_upload(proxy, stack, length=1_000_000)
        time.sleep(0.5)  # until all of them have arrived
        assert begun_upload(proxy, stack, length=1_000_000).recv(12) == b"HTTP/1.1 429"
        assert proxy.ask(body=b"picture").status_code == 200
    time.sleep(0.5)
    assert proxy.ask(body=bytes(1_000_000)).status_code == 200


def test_who_asks_too_often_is_told_to_wait_and_others_are_not(proxy: Proxy) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: proxy.ask(), range(120)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    late = next(answer for answer in answers if answer.status_code == 429)
    assert "too many" in refused(late, 429)
    assert late.headers["Retry-After"] == "1"
    assert sum(answer.status_code == 200 for answer in answers) >= 41, "the burst passes"
    assert proxy.ask(token=BOB).status_code == 200


def test_plain_text_and_a_certificate_of_somebody_else_are_refused(proxy: Proxy) -> None:
    assert httpx.get(f"http://127.0.0.1:{proxy.port}/ping", trust_env=False).status_code == 400
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://localhost:{proxy.port}/ping", trust_env=False)


def test_behind_a_gateway_it_asks_for_the_token_in_plain_text(echo: Server) -> None:
    with running_proxy(echo, PROXY_TLS="none") as proxy:
        url = f"http://127.0.0.1:{proxy.port}/v1/models/convlens:predict"
        answers = [
            httpx.post(url, content=b"picture", headers=headers, trust_env=False, timeout=20)
            for headers in ({}, {"Authorization": f"Bearer {BOB}"})
        ]
    assert [answer.status_code for answer in answers] == [401, 200]


def stub(proxy: Proxy) -> InferenceAPIsServiceStub:
    trusted = grpc.ssl_channel_credentials(proxy.certificate.read_bytes())
    return InferenceAPIsServiceStub(grpc.secure_channel(f"localhost:{proxy.port}", trusted))


def test_grpc_goes_by_the_same_port(proxy: Proxy) -> None:
    request = PredictionsRequest(model_name="convlens", input={"data": bytes(5_000_000)})
    answer = stub(proxy).Predictions(request, metadata=(("authorization", f"Bearer {ALICE}"),), timeout=20)
    assert json.loads(answer.prediction)["bytes"] == 5_000_000


def test_grpc_without_a_token_is_unauthenticated(proxy: Proxy) -> None:
    request = PredictionsRequest(model_name="convlens", input={"data": b"0"})
    with pytest.raises(grpc.RpcError) as caught:
        stub(proxy).Predictions(request, timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
