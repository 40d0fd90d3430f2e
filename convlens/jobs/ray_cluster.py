"""Jobs over a Ray cluster; ray's only home. Needs the optional package: pip install 'convlens[ray]'."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convlens.errors import JobError
from convlens.features.embedder import open_embedder
from convlens.features.extract import Extraction, extract
from convlens.features.loader import BATCH_SIZE, EmbeddedBatch, embed_files, join_batches
from convlens.jobs.batch import BatchResult, Entry, run_entry
from convlens.jobs.config import from_mapping, to_mapping
from convlens.models import load
from convlens.utils.concurrency import batched

_CONNECT_S = 5.0
_PART = 4  # batches that a worker gets at a time


def run_batch_on(
    address: str,
    entries: Sequence[Entry],
    out: Path,
    *,
    device: str = "auto",
    video: bool = False,
    workers: int | None = None,
) -> list[BatchResult]:
    """As ``run_batch``, spread over the cluster at ``address``, or one of ``workers`` processes here for "local".

    ``out`` and the jobs' pictures must lie where every machine of the cluster finds them. Each worker takes one core,
    and on machines with GPUs one GPU where ``device`` is not the CPU. JobError where ray is missing or the cluster
    cannot be reached; a worker that dies ends its job with an error, and the same command goes on from there.
    """
    place = str(out.resolve())
    tasks = [(to_mapping(entry.job), entry.name, place, device, video) for entry in entries]
    with _cluster(address, workers) as ray:
        ended = _spread(ray, _run_one, tasks, device)
    return [
        found if isinstance(found, BatchResult) else BatchResult(entry.name, error=f"its worker died: {found}")
        for entry, found in zip(entries, ended, strict=True)
    ]


def extract_on(
    address: str,
    files: Mapping[str, Path],
    out: Path,
    *,
    model: str,
    graph: Path | None = None,
    device: str = "auto",
    batch: int = BATCH_SIZE,
    workers: int | None = None,
    **options: Any,
) -> Extraction:
    """As ``convlens.features.extract.extract``, with the pictures read and embedded by the workers of a cluster.

    What is written, and how it goes on after a kill, is as without one. The pictures, and a ``graph``, must lie where
    every machine of the cluster finds them. JobError as ``run_batch_on``; a worker that dies ends the run, and the same
    call goes on from there.
    """
    embedder = open_embedder(load(model, device=device), graph, batch=batch)
    with _cluster(address, workers) as ray:
        spread = _Spread(ray, _Embedding(model, graph, device), _PART * batch, device)
        return extract(files, out, embedder, batch=batch, spread=spread, **options)


@dataclass(frozen=True)
class _Embedding:
    """What a worker embeds with."""

    model: str
    graph: Path | None
    device: str


class _Spread:
    """Two parts a worker are under way, so that none waits; they come back in order."""

    def __init__(self, ray: Any, embedding: _Embedding, part: int, device: str) -> None:
        self._ray, self._embedding, self.part = ray, embedding, part
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if device != "cpu" else 0
        actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(_Embedder)
        self._workers = [actor.remote(embedding) for _ in range(gpus or max(1, int(resources.get("CPU", 1))))]

    def batches(
        self, files: Iterable[tuple[str, Path]], *, batch: int, thumbnail_side: int
    ) -> Generator[EmbeddedBatch]:
        """One for each part. JobError where a worker died."""
        parts = enumerate(batched(files, self.part))
        waiting: deque[Any] = deque()
        while True:
            while len(waiting) < 2 * len(self._workers) and (one := next(parts, None)) is not None:
                number, part = one
                worker = self._workers[number % len(self._workers)]
                waiting.append(worker.embed.remote(part, batch, thumbnail_side))
            if not waiting:
                return
            try:
                yield self._ray.get(waiting.popleft())
            except self._ray.exceptions.RayActorError as error:
                raise JobError(f"a worker died: {error}; the same command goes on from there") from error


class _Embedder:
    """A worker: holds the model for as long as it lives."""

    def __init__(self, embedding: _Embedding) -> None:
        _one_thread_each()
        self._classifier = load(embedding.model, device=embedding.device)
        self._graph = embedding.graph

    def embed(self, files: Sequence[tuple[str, Path]], batch: int, thumbnail_side: int) -> EmbeddedBatch:
        embedder = open_embedder(self._classifier, self._graph, batch=batch)
        return join_batches(embed_files(files, embedder, batch=batch, workers=1, thumbnail_side=thumbnail_side))


def _one_thread_each() -> None:
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))


def _run_one(description: dict[str, Any], name: str, out: str, device: str, video: bool) -> BatchResult:
    _one_thread_each()
    return run_entry(Entry(name, from_mapping(description)), Path(out), device=device, video=video)


def _spread(ray: Any, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], device: str) -> list[Any]:
    """What the calls gave, in order; an error as a value."""
    gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(function)
    found: list[Any] = []
    for reference in [remote.remote(*task) for task in tasks]:
        try:
            found.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            found.append(error)
    return found


def _require_reachable(address: str) -> None:
    """OSError at once where nobody listens: ray itself tries for minutes. ``auto`` is ray's to resolve."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


@contextlib.contextmanager
def _cluster(address: str, workers: int | None) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise JobError("--ray needs the package ray: pip install 'convlens[ray]'") from error
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    # Numbers come out as from a run without ray only where each process has as many threads.
    threads = {"env_vars": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}}
    try:
        if address == "local":
            ray.init(
                address="local",
                num_cpus=workers or os.cpu_count(),
                _node_ip_address="127.0.0.1",
                runtime_env=threads,
                **quiet,
            )
        else:
            _require_reachable(address)
            ray.init(address=address, runtime_env=threads, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, TimeoutError) as error:
        raise JobError(f"no Ray cluster at {address}: {error}; say `local`, or start one with `ray start`") from error
    try:
        yield ray
    finally:
        ray.shutdown()
