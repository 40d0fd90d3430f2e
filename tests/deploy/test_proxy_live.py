"""The proxy of deploy/proxy, run by nginx in front of a real TorchServe."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from convlens.client.protocol.inference_pb2 import PredictionsRequest
from convlens.client.protocol.inference_pb2_grpc import InferenceAPIsServiceStub
from convlens.serving import archive, config, server
from convlens.serving.model_config import ArchiveOptions
from convlens.serving.server import Server

ROOT = Path(__file__).parent.parent.parent
START = ROOT / "deploy" / "proxy" / "start.sh"
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])  # where nginx lies, for root alone

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        not (shutil.which("nginx", path=PATH) and shutil.which("openssl")), reason="needs nginx and openssl"
    ),
]

ALICE, BOB = "alice-1234567890", "bob-1234567890"
# Says what reached it. A body that is a number is so many seconds of work.
ECHOES = """
import json, time

class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [self.answer(row, context.get_all_request_header(at)) for at, row in enumerate(data)]

    def answer(self, row, headers):
        body = bytes(row.get("data") or row.get("body") or b"")
        if len(body) < 4:
            time.sleep(float(body))
        return json.dumps({"bytes": len(body), "headers": dict(headers)})
"""


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("behind")
    handler = folder / "echoes.py"
    handler.write_text(ECHOES)
    options = ArchiveOptions(handler=handler, batch_size=1, max_batch_delay_ms=1)
    built = archive.build(name="convlens", model_dir=None, store=folder / "store", options=options)
    with server.running(archives={"convlens": built}, run_dir=folder / "run") as live:
        yield live


@dataclass(frozen=True)
class Proxy:
    process: subprocess.Popen[str]
    folder: Path
    key_file: Path
    port: int
    metrics_port: int

    @property
    def certificate(self) -> Path:
        return self.folder / "tls" / "tls.crt"

    def client(self, **settings: Any) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(
            base_url=f"https://localhost:{self.port}", verify=trusted, trust_env=False, timeout=20, **settings
        )

    def ask(self, path: str = "predictions/convlens", *, token: str | None = ALICE, **sent: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        method, body = sent.pop("method", "POST"), sent.pop("body", b"0")
        with self.client() as client:
            return client.request(method, f"/{path}", content=body, headers=headers | sent)

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def proxy(behind: Server) -> Iterator[Proxy]:
    # Not below pytest's folder, which is root's alone: nginx gives its workers to another user.
    folder = Path(tempfile.mkdtemp(prefix="convlens-proxy-"))
    folder.chmod(0o711)
    key_file = folder / "key_file.json"
    shutil.copy(behind.key_file, key_file)
    subprocess.run([START.with_name("test_certificate.sh"), folder / "tls"], check=True, capture_output=True)
    (folder / "clients.conf").write_text(f'"Bearer {ALICE}" alice;\n"Bearer {BOB}" bob;\n')
    port, metrics_port = two_free_ports()
    environment = {
        "PATH": PATH,
        "CONVLENS_KEY_FILE": str(key_file),
        "PROXY_TLS": str(folder / "tls"),
        "PROXY_CLIENTS": str(folder / "clients.conf"),
        "PROXY_DIR": str(folder / "run"),
        "PROXY_LISTEN": f"127.0.0.1:{port}",
        "PROXY_METRICS": f"127.0.0.1:{metrics_port}",
        "PROXY_REST": behind.inference_url.removeprefix("http://"),
        "PROXY_GRPC": behind.grpc_address,
        "PROXY_TORCHSERVE_METRICS": behind.metrics_url.removeprefix("http://"),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["sh", START], env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        started = Proxy(process, folder, key_file, port, metrics_port)
        assert until(lambda: listens(port), within_s=20), started.log()
        yield started
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def two_free_ports() -> tuple[int, int]:
    ports = config.free_ports()
    return ports.inference, ports.metrics


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def until(right: Callable[[], bool], *, within_s: float) -> bool:
    ends = time.monotonic() + within_s
    while not (found := right()) and time.monotonic() < ends:
        time.sleep(0.1)
    return found


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
    proxy: Proxy, behind: Server, path: str
) -> None:
    before = time.time()
    answer = proxy.ask(path, body=b"picture", **{"X-Request-Start": "t=1"})
    assert answer.status_code == 200, answer.text
    headers = {name.lower(): value for name, value in answer.json()["headers"].items()}
    assert headers["authorization"] == f"Bearer {behind.token('inference')}"
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


def test_the_server_s_own_token_is_not_a_client_s(proxy: Proxy, behind: Server) -> None:
    refused(proxy.ask(token=behind.token("inference")), 401)


@pytest.mark.parametrize(
    "path",
    ["", "models", "models/convlens", "token", "metrics", "api-description", "predictions/../models", "workflows/x",
     "predictions/%2e%2e/models", "predictions%2F..%2Fmodels", "v2/repository/index", "wfpredict/x"],
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


def test_ping_needs_no_token(proxy: Proxy) -> None:
    assert proxy.ask("ping", token=None, method="GET", body=None).json() == {"status": "Healthy"}


def test_a_body_just_below_the_limit_passes_and_one_above_is_refused(proxy: Proxy) -> None:
    largest = int(config.read(config.committed())["max_request_size"])
    below = proxy.ask(body=bytes(largest - 1000))
    assert below.status_code == 200, below.text
    assert below.json()["bytes"] == largest - 1000
    assert "32 MiB" in refused(proxy.ask(body=bytes(largest + 1)), 413)


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


def test_metrics_have_a_port_of_their_own(proxy: Proxy) -> None:
    proxy.ask()
    url = f"http://127.0.0.1:{proxy.metrics_port}"
    assert 'ts_inference_requests_total{model_name="convlens"' in httpx.get(f"{url}/metrics", trust_env=False).text
    assert httpx.post(f"{url}/predictions/convlens", content=b"0", trust_env=False).status_code == 404


def test_a_server_that_restarts_brings_another_token(proxy: Proxy) -> None:
    rightly = proxy.key_file.read_text()
    keys = json.loads(rightly)
    keys["inference"]["key"] = "other-key"
    proxy.key_file.write_text(json.dumps(keys))
    assert until(lambda: proxy.ask().status_code == 400, within_s=10), "TorchServe's answer to a wrong token"
    proxy.key_file.write_text(rightly)
    assert until(lambda: proxy.ask().status_code == 200, within_s=10)


def test_no_token_is_in_the_log_or_readable_for_others(proxy: Proxy, behind: Server) -> None:
    proxy.ask(body=b"0", **{"X-Secret": "in-a-header"})
    proxy.ask("predictions/convlens?in-a-query=1")
    assert until(lambda: '"client":"alice"' in proxy.log(), within_s=5)
    for secret in (ALICE, behind.token("inference"), "in-a-header", "in-a-query"):
        assert secret not in proxy.log()
    line = next(line for line in proxy.log().splitlines() if line.startswith("{"))
    assert json.loads(line)["path"] == "/predictions/convlens"
    assert (proxy.folder / "run" / "token.conf").stat().st_mode & 0o077 == 0


def test_sigterm_answers_what_is_in_flight_and_takes_nothing_new(proxy: Proxy) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(proxy.ask, body=b"3")
        time.sleep(1.0)
        proxy.process.send_signal(signal.SIGTERM)
        assert until(lambda: not listens(proxy.port), within_s=2)
        assert not answer.done()
        assert answer.result().status_code == 200
    assert proxy.process.wait(10) == 0


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    environment = {"PATH": PATH, "PROXY_CLIENTS": str(tmp_path / "clients.conf"), "PROXY_DIR": str(tmp_path / "run")}
    done = subprocess.run(["sh", START], env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 2
    assert f"cannot read {tmp_path / 'clients.conf'}" in done.stderr
