"""Metrics of all replicas in one place, in Prometheus's text format: they outlive a replica, as TorchServe's do."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# TorchServe's, so that one dashboard does for both servers.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_HOST = "Hostname"


@dataclass(frozen=True)
class Sample:
    """One number for a metric of a ``kind``, counter or histogram; ``labels``: name -> value."""

    kind: str
    metric: str
    labels: Mapping[str, str]
    value: float


class MetricsStore:
    """A deployment of one replica that adds up what the others send."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = CollectorRegistry()
        self._metrics: dict[str, Counter | Histogram] = {}

    async def add(self, samples: Sequence[Sample], host: str) -> None:
        """Add the samples of one batch, from a replica on that machine."""
        for sample in samples:
            metric = self._metric(sample).labels(**sample.labels, **{_HOST: host})
            if isinstance(metric, Counter):
                metric.inc(sample.value)
            else:
                metric.observe(sample.value)

    async def text(self) -> bytes:
        """All metrics, as Prometheus scrapes them."""
        return generate_latest(self._registry)

    def _metric(self, sample: Sample) -> Counter | Histogram:
        if sample.metric not in self._metrics:
            labels = [*sample.labels, _HOST]
            if sample.kind == "counter":
                self._metrics[sample.metric] = Counter(sample.metric, sample.metric, labels, registry=self._registry)
            else:
                self._metrics[sample.metric] = Histogram(
                    sample.metric, sample.metric, labels, registry=self._registry, buckets=_BUCKETS
                )
        return self._metrics[sample.metric]


def host_name() -> str:
    """This machine's, for the label that tells machines apart."""
    return socket.gethostname()
