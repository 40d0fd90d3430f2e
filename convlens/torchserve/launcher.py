"""A TorchServe process: what it is started with (folders, configuration, command, environment), and how it is ended."""

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

from convlens.client.run_dir import remove_record
from convlens.errors import ServerError
from convlens.torchserve import server_config
from convlens.torchserve.archive import read_manifest
from convlens.torchserve.archive_config import require_name
from convlens.torchserve.server_config import Ports, handlers_folder

_SOCKET_PATH_BYTES = 107  # Linux's limit for a unix socket's path: here <temp>/.ts.sock.<number>
# PYTHONPATH would come before the archive's own modules, and TS_CONFIG_FILE would win over our configuration.
_DROPPED = ("PYTHONPATH", "PYTHONHOME", "TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME")
_LOCALE = "C.UTF-8"  # in the C locale Java cannot even name a folder with a letter beyond ASCII
_POLL_S = 0.05


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server that most callers leave alone.

    ``base``: the properties file to start from, the committed one by default; ``overrides``: keys of it, for this
    server only. ``threads`` for each worker: OMP_NUM_THREADS by default, else the cores divided among all workers.
    ``host``: where inference and metrics listen; management stays on the loopback address. ``follow``: copy what the
    server prints to this process's standard output, for containers.
    """

    base: Path | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    host: str = server_config.LOOPBACK
    follow: bool = False


# --- before it starts -------------------------------------------------------------------------------------------------


def make_temp_dir() -> Path:
    """A new folder with a short path. Servers that share one take each other's sockets. Raises ServerError."""
    path = Path(tempfile.mkdtemp(prefix="convlens-"))
    if len(os.fsencode(path / ".ts.sock.00000")) > _SOCKET_PATH_BYTES:
        path.rmdir()
        raise ServerError(f"{path.parent} is too long a path for a socket's folder; set TMPDIR to a shorter one")
    return path


def prepare_run_dir(run_dir: Path) -> Path:
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
    remove_record(run_dir)
    return run_dir


def write_config(
    run_dir: Path, archives: Mapping[str, Path], *, ports: Ports, auth: bool, settings: ServerSettings
) -> None:
    """``run_dir/config.properties``, and the archives linked into ``run_dir/model_store``. Raises ServerError."""
    store = run_dir / "model_store"
    models = {name: f"{require_name(name)}.mar" for name in archives}
    for name, file in models.items():  # linked into a store of the server's own: it can load these and no others
        (store / file).symlink_to(archives[name].resolve())
    base = settings.base or server_config.committed()
    overrides = {"metrics_config": _metrics_config(base), **settings.overrides}
    values = server_config.effective(
        base, ports=ports, model_store=store, models=models, auth=auth, host=settings.host, overrides=overrides
    )
    server_config.write(run_dir / "config.properties", values)


def worker_threads(settings: ServerSettings, archives: Iterable[Path]) -> int:
    """Threads for one worker; left alone, torch takes every core in every one. Raises ServerError for a bad archive."""
    workers = sum(read_manifest(archive).workers for archive in archives)
    configured = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, (os.cpu_count() or 1) // max(1, workers))
    return settings.threads or (int(configured) if configured.isdigit() else share)


def _running_in(run_dir: Path) -> int | None:
    # By its command line: a pid file would outlive a server that was killed.
    config = str(run_dir / "config.properties")
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if config in command and "org.pytorch.serve.ModelServer" in command:
            return int(process.pid)
    return None


def _metrics_config(base: Path) -> str:
    """The file that declares the metrics: the one that ``base`` names, seen from its folder, else that of the handlers.

    Absolute, because the server runs in a folder of its own.
    """
    named = server_config.read(base).get("metrics_config")
    return str((base.absolute().parent / named).resolve() if named else handlers_folder() / "metrics.yaml")


# --- its start --------------------------------------------------------------------------------------------------------


def launch(java: Path, run_dir: Path, temp: Path, *, threads: int, follow: bool = False) -> subprocess.Popen[bytes]:
    """The server's Java process, leader of a process group that its workers will be in. Raises ServerError."""
    console = run_dir / "logs" / "console.log"
    with console.open("wb") as file:
        process = subprocess.Popen(
            _command(java, run_dir, temp),
            cwd=run_dir,  # where TorchServe writes the key file
            env=_environment(run_dir, temp, threads),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if follow else file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # keeps a terminal's Ctrl-C away: the server is stopped in its own order
        )
    if follow:
        threading.Thread(target=_copy_output, args=(process, console), daemon=True).start()
    return process


def _copy_output(process: subprocess.Popen[bytes], console: Path) -> None:
    """To standard output, and until the server has started to the file as well, where a failed start is looked up."""
    assert process.stdout is not None
    starting = True
    with console.open("wb", buffering=0) as file:
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            if starting:
                file.write(line)
            starting = starting and b"Model server started." not in line


def _command(java: Path, run_dir: Path, temp: Path) -> list[str]:
    """The Java process itself, without the ``torchserve`` script: that one adds a process and a shared pid file."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise ServerError("TorchServe is not installed; run `pip install 'convlens[serve]'`")
    home, config = Path(spec.origin).parents[1], run_dir / "config.properties"
    # Without performance data, which Java would leave in a folder shared by all Javas of this user.
    jvm = ["-XX:-UsePerfData", *shlex.split(server_config.read(config).get("vmargs", ""))]
    paths = [f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={temp}"]
    paths += [f"-Dlog4j.configurationFile={(handlers_folder() / 'log4j2.xml').as_uri()}"]
    program = ["-cp", str(home / "ts" / "frontend" / "*"), "org.pytorch.serve.ModelServer"]
    return [str(java), *jvm, *paths, *program, "--python", sys.executable, "-f", str(config), "-ncs"]


def _environment(run_dir: Path, temp: Path, threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    return {
        **kept,
        # Two servers on one machine need folders of their own for sockets and logs.
        **{name: str(temp) for name in ("TMPDIR", "TEMP", "TMP")},
        **{name: str(run_dir / "logs") for name in ("LOG_LOCATION", "METRICS_LOCATION")},
        "OMP_NUM_THREADS": str(threads),
        # Torch's waiting threads spin unless told otherwise, which is ruinous beside a Java server and other workers.
        "OMP_WAIT_POLICY": kept.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
        "LC_ALL": _LOCALE,
    }


# --- its end ----------------------------------------------------------------------------------------------------------


def end_group(leader: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """End the leader of a process group, then whatever of its group lives on; returns when none does.

    What is left after ``grace_s`` seconds is killed.
    """
    if leader.poll() is None:
        leader.terminate()  # alone first: TorchServe starts a new worker for one that dies while it still runs
        with suppress(subprocess.TimeoutExpired):
            leader.wait(grace_s)
    _signal(leader.pid, signal.SIGTERM)
    if not _gone(leader.pid, within_s=grace_s):
        _signal(leader.pid, signal.SIGKILL)
        _gone(leader.pid, within_s=grace_s)
    leader.wait()


def group_members(group: int) -> list[psutil.Process]:
    """The living processes of a group; those that ended and wait for a parent to notice do not count."""
    return [process for process in psutil.process_iter() if _alive_in(process, group)]


def _alive_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


def _signal(group: int, number: int) -> None:
    for process in group_members(group):
        with suppress(psutil.Error):
            process.send_signal(number)


def _gone(group: int, *, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while group_members(group):
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True
