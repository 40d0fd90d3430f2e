"""The proxy's life beside its server: metrics, tokens that change, logs, the end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from nginx_proxy import ALICE, INSTALLED, PATH, START, Proxy, listens, until

from convlens.torchserve.server import Server

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs nginx and openssl")


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


def test_no_token_is_in_the_log_or_readable_for_others(proxy: Proxy, echo: Server) -> None:
    proxy.ask(body=b"0", **{"X-Secret": "in-a-header"})
    proxy.ask("predictions/convlens?in-a-query=1")
    assert until(lambda: '"client":"alice"' in proxy.log(), within_s=5)
    for secret in (ALICE, echo.token("inference"), "in-a-header", "in-a-query"):
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
