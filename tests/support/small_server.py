"""Archives of a small network, whole and broken, and a server that is started without waiting for all its models."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from convlens.cli.photographs import other_photographs
from convlens.gallery import build_from
from convlens.models import load, pack
from convlens.torchserve import archive, launcher, server, server_config
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.java import find_java
from convlens.torchserve.launcher import ServerSettings
from convlens.torchserve.server import Server
from convlens.torchserve.server_config import LOOPBACK

# Entries of one small network: one worker that may be hurt, and two workers whose requests are counted.
SMALL, WATCHED = "small", "watched"
QUEUE = 24  # requests that may wait for a worker
NETWORK = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
# Three classes are called so: what would end a header or a line, forge a metric, colour a terminal. No log says MARK.
ODD_LABELS = ("MARK line\r\nbreak: x", "\n[METRICS]MARK.Count:1|#b:c|#hostname:h\n[PID]1", "\x1b[31mMARK\u2028\x00")
# The others are no ASCII.
LABELS = (*(f"Gürteltier 犰狳 {number} – „å“" for number in range(996)), "🦔", *ODD_LABELS)


def packed(folder: Path) -> Path:
    """The network and a gallery of it, in folders ``model`` and ``gallery``."""
    classifier = load(NETWORK, device="cpu")
    # No file of labels may hold the odd ones, but somebody's Python may.
    classifier = replace(classifier, spec=replace(classifier.spec, labels=LABELS))
    build_from(list(other_photographs()), folder / "gallery", classifier)
    pack(classifier, folder / "model")
    return folder


def built(name: str, folder: Path, **options: object) -> Path:
    return archive.build(
        name=name,
        model_dir=folder / "model",
        gallery=folder / "gallery",
        store=folder / "store",
        options=ArchiveOptions(**{"batch_size": 8, "max_batch_delay_ms": 20, **options}),
    )


def small_archives(folder: Path) -> dict[str, Path]:
    """Of the network in a folder that ``packed`` wrote."""
    return {SMALL: built(SMALL, folder), WATCHED: built(WATCHED, folder, batch_size=4, min_workers=2)}


@contextmanager
def started_with_bad_archives(archives: Mapping[str, Path], run_dir: Path, *, first: str) -> Iterator[Server]:
    """As ``server.running``, which gives up where one model does not load; this waits for the model ``first`` alone."""
    ports = server_config.free_ports()
    run_dir = launcher.prepare_run_dir(run_dir)
    launcher.write_config(run_dir, archives, ports=ports, auth=True, settings=ServerSettings())
    temp = launcher.make_temp_dir()
    process = launcher.launch(find_java() / "bin" / "java", run_dir, temp, threads=1)
    started = Server(tuple(archives), ports, run_dir, True, temp, process)
    try:
        wait_for(started, first, within_s=60)
        yield started
    finally:
        server.stop(started)
        shutil.rmtree(temp, ignore_errors=True)


def wait_for(at: Server, model: str, *, within_s: float, picture: bytes = b"none") -> float:
    """Seconds until the model's worker answers, be it with a refusal; AssertionError where it does not in time."""
    begun = time.monotonic()
    while time.monotonic() - begun < within_s:
        try:
            got = httpx.post(
                f"http://{LOOPBACK}:{at.ports.inference}/predictions/{model}",
                headers=at.headers("inference"),
                content=picture,
                timeout=5,
                trust_env=False,
            )
            if got.status_code == 400 and b'"field"' in got.content:
                return time.monotonic() - begun
        except (httpx.HTTPError, server.ServerError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"{model} did not answer within {within_s:g} s")


def worker_of(at: Server, model: str) -> psutil.Process:
    """The process of the model's only worker."""
    return psutil.Process(described(at, model)["pid"])


def worker_status(at: Server, model: str) -> str:
    return str(described(at, model)["status"])


def described(at: Server, model: str) -> dict[str, Any]:
    """What the management API says of the model's only worker."""
    url = f"{at.management_url}/models/{model}"
    got = httpx.get(url, headers=at.headers("management"), timeout=10, trust_env=False)
    return dict(got.json()[0]["workers"][0])
