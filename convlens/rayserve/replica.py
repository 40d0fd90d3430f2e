"""A replica: the archive's handler in a process of its own, with dynamic batches of what clients ask."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve

from convlens.errors import ConvLensError, ServerError
from convlens.rayserve.archives import ServedEntry, load_handler, unpacked
from convlens.rayserve.config import Role
from convlens.rayserve.context import Answer, BatchContext, Instrument, Metrics, StartContext
from convlens.rayserve.metrics import Sample, host_name

Item = tuple[dict[str, Any], Mapping[str, str]]
# Of one reply. TorchServe's limit is an eighth of that: it takes a batch over in time quadratic in its bytes.
MAX_REPLY_BYTES = 64_000_000
# Each call to the store takes a millisecond, of an answer's time if it were made before. Serve waits two seconds before
# it ends a replica, so that nothing is lost.
_METRICS_EVERY_S = 0.2


class ModelReplica:
    """Answers what its role is for.

    ``quick`` takes predictions and gradient methods in batches, and hands back what has many forward passes or asks
    for neighbours alone, where other roles are deployed for that; ``sweeps`` takes one request at a time, because
    sharing saves a sweep nothing.
    """

    def __init__(self, entry: ServedEntry, role: Role, roles: tuple[Role, ...], metrics: Any = None) -> None:
        self._entry, self._role, self._roles, self._metrics_store = entry, role, roles, metrics
        self._pending: deque[Sample] = deque()  # filled in the thread of a batch, emptied on the loop
        self._sending: asyncio.TimerHandle | None = None
        self._busy_since: float | None = None
        folder, batch_size = unpacked(entry), 1 if role == "sweeps" else entry.batch_size
        self._answer_batch.set_max_batch_size(batch_size)  # type: ignore[attr-defined]
        # No delay: while one batch is computed the next one gathers.
        self._answer_batch.set_batch_wait_timeout_s(0.0)  # type: ignore[attr-defined]
        gpu = 0 if ray.get_gpu_ids() else None  # ray shows a replica its own GPUs alone
        start = StartContext(entry, folder, batch_size=batch_size, gpu=gpu, metrics=self._instruments())
        self._handler = load_handler(folder)()
        self._handler.initialize(start)
        self._handler.max_reply_bytes = MAX_REPLY_BYTES  # type: ignore[attr-defined]

    async def answer(self, parts: dict[str, Any], headers: Mapping[str, str]) -> Answer | Role:
        """The answer to a request, or the role whose deployment is to be asked instead."""
        if self._role == "quick" and len(self._roles) > 1:
            role = self._role_for(parts, headers)
            if role != self._role and role in self._roles:
                return role
        answer: Answer = await self._answer_batch((parts, headers))
        return answer

    def check_health(self) -> None:
        """Raises where a batch takes longer than the archive's responseTimeout: Serve then starts another replica."""
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > self._entry.response_timeout_s:
            raise ServerError(f"a batch takes longer than {self._entry.response_timeout_s:g} s")

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def _answer_batch(self, items: list[Item]) -> list[Answer]:
        context = BatchContext([headers for _, headers in items])
        self._busy_since = time.monotonic()
        try:
            # In a thread: meanwhile the replica takes requests in, and answers that it is well.
            bodies = await asyncio.to_thread(self._handler.handle, [parts for parts, _ in items], context)
        finally:
            self._busy_since = None
        if self._sending is None:
            self._sending = asyncio.get_running_loop().call_later(_METRICS_EVERY_S, self._send_metrics)
        return context.answers(bodies)

    def _role_for(self, parts: dict[str, Any], headers: Mapping[str, str]) -> Role:
        from convlens.rayserve.roles import role_for  # loads torch, as the handler has by now

        engine = getattr(self._handler, "engine", None)
        if engine is None:
            return self._role
        try:
            return role_for(parts, headers, engine)
        except ConvLensError:
            return self._role  # what cannot be read is refused here, in the handler's words

    def _instruments(self) -> Metrics:
        from convlens.serving.telemetry import COMMON_LABELS, COUNTERS, HISTOGRAMS

        return Metrics(
            {
                kind: {
                    name: Instrument(kind, name, (*COMMON_LABELS, *labels), self._pending)
                    for name, labels in metrics.items()
                }
                for kind, metrics in (("counter", COUNTERS), ("histogram", HISTOGRAMS))
            }
        )

    def _send_metrics(self) -> None:
        self._sending = None
        samples = [self._pending.popleft() for _ in range(len(self._pending))]
        if samples and self._metrics_store is not None:
            self._metrics_store.add.remote(samples, host_name())  # nobody waits for it
