"""The container's program, as far as no server need run: what it refuses, and that it hears signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convlens.torchserve import archive
from convlens.torchserve.container import main


def test_a_missing_archive_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convlens.torchserve.container", str(tmp_path / "none.mar")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: no archive {tmp_path / 'none.mar'}; build one with `convlens archive`\n"


def test_a_network_is_refused_where_only_graphs_can_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "model.json").write_text("{}")
    path = archive.build(name="net", model_dir=tmp_path / "packed", store=tmp_path)
    for name in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert main([str(path), "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path} holds a network, and timm and torchvision are not installed here: only exported graphs can be "
        "served; build the archive with `convlens archive --runtime onnx`, or the image with VARIANT=cuda or cpu\n"
    )
    assert not (tmp_path / "run").exists()


def test_exported_graphs_need_no_package_for_networks(tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "embedding.onnx").write_bytes(b"graph")
    path = archive.build(name="net", model_dir=None, graphs=tmp_path / "graphs", store=tmp_path)
    assert not archive.holds_network(path)


@pytest.mark.parametrize("option", ["linger", "drain"])
@pytest.mark.parametrize("given", ["-1", "nan", "inf", "soon", ""])
@pytest.mark.parametrize("said", ["by flag", "by environment"])
def test_a_time_that_is_none_is_refused_by_name(
    option: str, given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if said == "by environment":
        monkeypatch.setenv(f"CONVLENS_{option.upper()}_S", given)
    with pytest.raises(SystemExit) as ended:
        main(["net.mar", *([f"--{option}={given}"] if said == "by flag" else [])])
    assert ended.value.code == 2
    assert f"--{option}: {given!r} is no time of 0 to 86400 seconds" in capsys.readouterr().err


def test_a_host_that_is_no_address_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["net.mar", "--host", "example"])
    assert ended.value.code == 2
    assert "--host 'example' is no IPv4 address" in capsys.readouterr().err


def test_a_signal_at_any_moment_is_heard() -> None:
    """Python runs its handler wherever the main thread is, so also within whatever it waits by."""
    waits = (
        "import signal; from convlens.torchserve.container import signal_queue, signalled_within; count = 0\n"
        "came = signal_queue(signal.SIGTERM); print('waiting', flush=True)\n"
        "while count < 2000: count += signalled_within(came, 1e-4)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    )
    with subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            child.send_signal(signal.SIGTERM)
            time.sleep(1e-5)
        child.kill()
        assert child.wait(10) == 0, "it hangs, or its handler was called within itself"
