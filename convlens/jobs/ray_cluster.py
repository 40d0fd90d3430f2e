"""Jobs and extraction over a Ray cluster; ray's only home. Needs the optional package: pip install 'convlens[ray]'."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from convlens.acceleration import accelerate
from convlens.errors import JobError
from convlens.evaluation.picture import EvaluationPlan, Picture, PictureEvaluator, Record
from convlens.features.embedder import open_embedder
from convlens.features.extract import Extraction, extract
from convlens.features.loader import BATCH_SIZE, EmbeddedBatch, embed_files, join_batches
from convlens.jobs.batch import BatchResult, Entry, run_entry
from convlens.jobs.batch_index import BatchIndex
from convlens.jobs.config import from_mapping, to_mapping
from convlens.models import load
from convlens.types import ArithmeticPrecision
from convlens.utils.concurrency import batched

Item = TypeVar("Item")
_CONNECT_S = 5.0
_PART_BATCHES = 4  # sent to a worker at a time
_PARTS_AHEAD = 2  # a worker's, so that none waits for the next one


def run_batch_on(
    address: str,
    entries: Sequence[Entry],
    out: Path,
    *,
    device: str = "auto",
    precision: ArithmeticPrecision = "float32",
    video: bool = False,
    workers: int | None = None,
) -> list[BatchResult]:
    """As ``run_batch``, over the cluster at ``address``, or over ``workers`` processes of this machine for "local".

    ``out`` and the jobs' images must lie where every machine of the cluster finds them. Each worker takes one core, and
    on machines with GPUs one GPU unless ``device`` is the CPU. Raises JobError where ray is missing or the cluster
    cannot be reached; a worker that dies ends its job with an error, and the same command resumes it.
    """
    folder = str(out.resolve())
    tasks = [(to_mapping(entry.job), entry.name, folder, device, precision, video) for entry in entries]
    index = BatchIndex(out, {entry.name: entry.job for entry in entries})
    results: list[BatchResult] = []
    try:
        with _cluster(address, workers) as ray:
            ended = _run_tasks(ray, _run_entry, tasks, device)
        results += [
            result if isinstance(result, BatchResult) else BatchResult(entry.name, error=f"its worker died: {result}")
            for entry, result in zip(entries, ended, strict=True)
        ]
    finally:
        # After an interrupt, too: the jobs have come further than the index knows.
        index.update_all({entry.name: "" for entry in entries} | {result.name: result.error for result in results})
    return results


def extract_on(
    address: str,
    files: Mapping[str, Path],
    out: Path,
    *,
    model: str,
    graph: Path | None = None,
    device: str = "auto",
    precision: ArithmeticPrecision = "float32",
    batch: int = BATCH_SIZE,
    workers: int | None = None,
    **options: Any,
) -> Extraction:
    """As ``convlens.features.extract.extract``, with images read and embedded by the workers of a cluster.

    The folder is written, and resumed, as without a cluster. The images, and a ``graph``, must lie where every machine
    of the cluster finds them. Raises JobError as ``run_batch_on``; a worker that dies ends the run, and the same call
    resumes it.
    """
    embedder = open_embedder(load(model, device=device, precision=precision), graph, batch=batch)
    with _cluster(address, workers) as ray:
        actors = _EmbeddingActors(ray, _ActorConfig(model, graph, device, precision), _PART_BATCHES * batch)
        return extract(files, out, embedder, batch=batch, cluster=actors, **options)


@dataclass(frozen=True)
class _ActorConfig:
    model: str
    graph: Path | None
    device: str
    precision: ArithmeticPrecision
    accelerated: bool = False


class _EmbeddingActors:
    """An actor for each GPU, else for each core, that take turns; results come back in order."""

    def __init__(self, ray: Any, config: _ActorConfig, part: int) -> None:
        self._ray, self.part = ray, part
        self._actors = _actors(ray, _EmbeddingActor, config.device, config)

    def embed_files(
        self, files: Iterable[tuple[str, Path]], *, batch: int, thumbnail_side: int
    ) -> Generator[EmbeddedBatch]:
        """A batch for each part of the files. Raises JobError where a worker died."""

        def begin(actor: Any, part: Sequence[tuple[str, Path]]) -> Any:
            return actor.embed.remote(part, batch, thumbnail_side)

        return _in_turn(self._ray, self._actors, batched(files, self.part), begin)


class _EmbeddingActor:
    """Lives in a worker process and holds the model there."""

    def __init__(self, config: _ActorConfig) -> None:
        _limit_threads()
        self._classifier = load(config.model, device=config.device, precision=config.precision)
        self._graph = config.graph

    def embed(self, files: Sequence[tuple[str, Path]], batch: int, thumbnail_side: int) -> EmbeddedBatch:
        embedder = open_embedder(self._classifier, self._graph, batch=batch)
        # One reader, because ray gives an actor one core.
        return join_batches(embed_files(files, embedder, batch=batch, workers=1, thumbnail_side=thumbnail_side))


class EvaluationActors:
    """Evaluates images on a cluster, as ``convlens.evaluation.evaluate.EvaluationCluster`` says.

    The images must lie where every machine finds them. JobError as for ``run_batch_on``.
    """

    def __init__(
        self, address: str, model: str, *, device: str, precision: ArithmeticPrecision, accelerated: bool
    ) -> None:
        """``accelerated``: the workers run the network's graph, as an accelerated classifier does."""
        self._address = address
        self._config = _ActorConfig(model, None, device, precision, accelerated)

    def records(self, pictures: Iterable[Picture], plan: EvaluationPlan) -> Generator[Record]:
        """A record for each image, in their order. Raises JobError where a worker died."""
        with _cluster(self._address, None) as ray:
            actors = _actors(ray, _EvaluationActor, self._config.device, self._config, plan)
            yield from _in_turn(ray, actors, pictures, lambda actor, picture: actor.record.remote(picture))


class _EvaluationActor:
    def __init__(self, config: _ActorConfig, plan: EvaluationPlan) -> None:
        _limit_threads()
        classifier = load(config.model, device=config.device, precision=config.precision)
        self._evaluator = PictureEvaluator(accelerate(classifier) if config.accelerated else classifier, plan)

    def record(self, picture: Picture) -> Record:
        return self._evaluator.record(picture)


def map_on(
    address: str,
    make: Callable[[], Callable[[Item], Any]],
    items: Iterable[Item],
    *,
    device: str,
    workers: int | None = None,
) -> Generator[Any]:
    """What the function that ``make`` gives, once in each worker, returns for each item, in their order.

    Both must be importable by the workers. JobError as for ``run_batch_on``, and where a worker died.
    """
    with _cluster(address, workers) as ray:
        actors = _actors(ray, _MapActor, device, make)
        yield from _in_turn(ray, actors, items, lambda actor, item: actor.call.remote(item))


class _MapActor:
    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        _limit_threads()
        self._function = make()

    def call(self, item: Any) -> Any:
        return self._function(item)


def _actors(ray: Any, kind: type, device: str, *args: Any) -> list[Any]:
    """An actor for each GPU of the cluster, else for each core."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if device != "cpu" else 0
    actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(kind)
    return [actor.remote(*args) for _ in range(gpus or max(1, int(resources.get("CPU", 1))))]


def _in_turn(
    ray: Any, actors: Sequence[Any], items: Iterable[Item], begin: Callable[[Any, Item], Any]
) -> Generator[Any]:
    """What the actors make of the items, taking turns, in the items' order; JobError where an actor died."""
    numbered = enumerate(items)
    waiting: deque[Any] = deque()
    while True:
        while len(waiting) < _PARTS_AHEAD * len(actors) and (numbered_item := next(numbered, None)) is not None:
            number, item = numbered_item
            waiting.append(begin(actors[number % len(actors)], item))
        if not waiting:
            return
        try:
            yield ray.get(waiting.popleft())
        except ray.exceptions.RayActorError as error:
            raise JobError(f"a worker died: {error}; the same command goes on from there") from error


def _limit_threads() -> None:
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))


def _run_entry(
    description: dict[str, Any], name: str, out: str, device: str, precision: ArithmeticPrecision, video: bool
) -> BatchResult:
    _limit_threads()
    entry = Entry(name, from_mapping(description))
    return run_entry(entry, Path(out), device=device, precision=precision, video=video)


def _run_tasks(ray: Any, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], device: str) -> list[Any]:
    """The results of all calls in order; an error of ray's as a value."""
    # The cluster is asked for GPUs: this machine need not have what its workers have.
    gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0
    # No retries: what killed one worker, such as too little memory, would kill the next.
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(function)
    results: list[Any] = []
    for reference in [remote.remote(*task) for task in tasks]:
        try:
            results.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            results.append(error)
    return results


def _require_reachable(address: str) -> None:
    """Raises OSError where nobody listens; an address without a port, such as ``auto``, is ray's to resolve."""
    # ray itself would try for minutes.
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


@contextlib.contextmanager
def _cluster(address: str, workers: int | None) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise JobError("--ray needs the package ray: pip install 'convlens[ray]'") from error
    # Numbers equal those of a run without ray only where each process has as many threads.
    threads = {"env_vars": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}}
    options: dict[str, Any] = {"runtime_env": threads, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": workers or os.cpu_count(), "_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        if address != "local":
            _require_reachable(address)
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError, TimeoutError) as error:
        raise JobError(f"no Ray cluster at {address}: {error}; say `local`, or start one with `ray start`") from error
    try:
        yield ray
    finally:
        ray.shutdown()
