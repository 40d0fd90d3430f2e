"""Ending a process and everything it started.

What a TorchServe process is started with: its folders, its configuration, its command and its environment.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from convlens.errors import ServerError
from convlens.torchserve import server_config
from convlens.torchserve.archive import read_manifest
from convlens.torchserve.archive_config import require_name
from convlens.torchserve.server_config import Ports, handlers_folder


def end_group(leader: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """End the leader of a process group, then whatever of its group lives on; returns when none does.

    The leader gets SIGTERM alone first: TorchServe starts a new worker for one that dies while it still runs. What is
    left after ``grace_s`` seconds is killed.
    """
    if leader.poll() is None:
        leader.terminate()
        with suppress(subprocess.TimeoutExpired):
            leader.wait(grace_s)
    _signal(leader.pid, signal.SIGTERM)
    if not _gone(leader.pid, within_s=grace_s):
        _signal(leader.pid, signal.SIGKILL)
        _gone(leader.pid, within_s=grace_s)
    leader.wait()


def members(group: int) -> list[psutil.Process]:
    """The living processes of a group; those that ended and wait for a parent to notice do not count."""
    return [process for process in psutil.process_iter() if _alive_in(process, group)]


def _alive_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


def _signal(group: int, number: int) -> None:
    for process in members(group):
        with suppress(psutil.Error):
            process.send_signal(number)


def _gone(group: int, *, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while members(group):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


_SOCKET_PATH_BYTES = 107  # a unix socket's path: <temp>/.ts.sock.<number>

# PYTHONPATH would come before the archive's own modules, and TS_CONFIG_FILE would win over our configuration.
_DROPPED = ("PYTHONPATH", "PYTHONHOME", "TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME")
_LOCALE = "C.UTF-8"  # in the C locale Java cannot even name a folder with a letter beyond ASCII


@dataclass(frozen=True)
class Settings:
    """What is rarely other than usual.

    ``base``: the committed config.properties unless given; ``overrides``: keys of it, for this server only.
    ``threads`` for each worker: OMP_NUM_THREADS where that is set, else the cores shared out among all workers.
    ``host``: where inference and metrics listen; management stays on the loopback address. ``follow``: what the server
    prints goes to this process's standard output as well, for containers.
    """

    base: Path | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    host: str = server_config.LOOPBACK
    follow: bool = False


def temp_dir() -> Path:
    """A new folder, own and short: servers that share one take each other's sockets, and a socket's path is limited."""
    path = Path(tempfile.mkdtemp(prefix="convlens-"))
    if len(os.fsencode(path / ".ts.sock.00000")) > _SOCKET_PATH_BYTES:
        path.rmdir()
        raise ServerError(f"{path.parent} is too long a path for a socket's folder; set TMPDIR to a shorter one")
    return path


def fresh(run_dir: Path) -> Path:
    """The folder without an earlier run's logs and model links, which would be read as this one's.

    Raises ServerError while another server runs there.
    """
    run_dir = run_dir.absolute()
    if (pid := _running_in(run_dir)) is not None:
        raise ServerError(f"a TorchServe (process {pid}) still runs in {run_dir}; stop it, or choose another folder")
    for name in ("logs", "model_store"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
        (run_dir / name).mkdir(parents=True)
    (run_dir / "key_file.json").unlink(missing_ok=True)
    return run_dir


def write_config(run_dir: Path, archives: Mapping[str, Path], *, ports: Ports, auth: bool, settings: Settings) -> None:
    """``run_dir/config.properties``, and the archives linked into ``run_dir/model_store``. Raises ServerError."""
    store = run_dir / "model_store"
    models = {name: _link(require_name(name), archive, store) for name, archive in archives.items()}
    base = settings.base or server_config.committed()
    overrides = {"metrics_config": _metrics_config(base), **settings.overrides}
    text = server_config.effective(
        base, ports=ports, model_store=store, models=models, auth=auth, host=settings.host, overrides=overrides
    )
    (run_dir / "config.properties").write_text(text, encoding="ascii")


def launch(java: Path, run_dir: Path, temp: Path, *, threads: int, follow: bool = False) -> subprocess.Popen[bytes]:
    """The key file is written to the working folder; the session of its own keeps a terminal's Ctrl-C away."""
    console = run_dir / "logs" / "console.log"
    with console.open("wb") as file:
        process = subprocess.Popen(
            _command(java, run_dir, temp),
            cwd=run_dir,
            env=_environment(run_dir, temp, threads),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if follow else file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if follow:
        threading.Thread(target=_follow, args=(process, console), daemon=True).start()
    return process


def _follow(process: subprocess.Popen[bytes], console: Path) -> None:
    """To standard output, and until the server has started to the file as well, where a failed start is looked up."""
    assert process.stdout is not None
    kept = True
    with console.open("wb", buffering=0) as file:
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            if kept:
                file.write(line)
            kept = kept and b"Model server started." not in line


def thread_share(settings: Settings, archives: Iterable[Path]) -> int:
    """Threads for one worker; left alone, torch takes every core in every one. Raises ServerError for a bad archive."""
    workers = sum(read_manifest(archive).workers for archive in archives)
    given = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, (os.cpu_count() or 1) // max(1, workers))
    return settings.threads or (int(given) if given.isdigit() else share)


def _running_in(run_dir: Path) -> int | None:
    settings = str(run_dir / "config.properties")
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if settings in command and "org.pytorch.serve.ModelServer" in command:
            return int(process.pid)
    return None


def _metrics_config(base: Path) -> str:
    """The file that declares the metrics: the one that ``base`` names, seen from its folder, else that of the handlers.

    Absolute, because the server runs in a folder of its own.
    """
    named = server_config.read(base).get("metrics_config")
    return str((base.absolute().parent / named).resolve() if named else handlers_folder() / "metrics.yaml")


def _link(name: str, archive: Path, store: Path) -> str:
    """Put the archive into the server's own store, so that it can load these and no others; returns the file name."""
    (store / f"{name}.mar").symlink_to(archive.resolve())
    return f"{name}.mar"


def _command(java: Path, run_dir: Path, temp: Path) -> list[str]:
    """The Java process itself, without the ``torchserve`` script: that one adds a process and a shared pid file."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise ServerError("TorchServe is not installed; run `pip install 'convlens[serve]'`")
    home, settings = Path(spec.origin).parents[1], run_dir / "config.properties"
    jvm = ["-XX:-UsePerfData", *shlex.split(server_config.read(settings).get("vmargs", ""))]
    places = [f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={temp}"]
    places += [f"-Dlog4j.configurationFile={(handlers_folder() / 'log4j2.xml').as_uri()}"]
    program = ["-cp", str(home / "ts" / "frontend" / "*"), "org.pytorch.serve.ModelServer"]
    return [str(java), *jvm, *places, *program, "--python", sys.executable, "-f", str(settings), "-ncs"]


def _environment(run_dir: Path, temp: Path, threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    places = {name: str(temp) for name in ("TMPDIR", "TEMP", "TMP")}
    log_places = {name: str(run_dir / "logs") for name in ("LOG_LOCATION", "METRICS_LOCATION")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Torch's waiting threads spin unless told otherwise, and beside a Java server and other workers that is ruinous.
    threading = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": kept.get("OMP_WAIT_POLICY", "PASSIVE")}
    return kept | places | log_places | threading | {"PATH": path, "LC_ALL": _LOCALE}
