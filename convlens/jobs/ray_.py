"""Jobs over a Ray cluster; ray's only home. Needs the optional package: pip install 'convlens[ray]'."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from convlens.errors import JobError
from convlens.jobs.batches import Ended, Entry, run_entry
from convlens.jobs.describing import from_mapping, to_mapping

_CONNECT_S = 5.0


def run_batch_on(
    address: str,
    entries: Sequence[Entry],
    out: Path,
    *,
    device: str = "auto",
    video: bool = False,
    workers: int | None = None,
) -> list[Ended]:
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
        found if isinstance(found, Ended) else Ended(entry.name, error=f"its worker died: {found}")
        for entry, found in zip(entries, ended, strict=True)
    ]


def _run_one(description: dict[str, Any], name: str, out: str, device: str, video: bool) -> Ended:
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
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
