"""The context that a handler asks for headers, and leaves statuses, content types and metrics in."""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convlens.rayserve.archives import ServedEntry
from convlens.rayserve.metrics import Sample

JSON = "application/json"
_ENDS_STREAM = "ts_stream_next"  # what TorchServe alone needs


@dataclass(frozen=True)
class Answer:
    """What goes back to a client, over HTTP or gRPC."""

    status: int
    media: str
    body: str | bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Instrument:
    """A metric as a handler sees it; what is added waits in ``pending`` until the replica sends it on."""

    def __init__(self, kind: str, name: str, labels: Sequence[str], pending: MutableSequence[Sample]) -> None:
        self._kind, self._name, self._pending = kind, name, pending
        self.dimension_names = list(labels)

    def add_or_update(self, value: float, dimension_values: Sequence[str] = ()) -> None:
        labels = dict(zip(self.dimension_names, map(str, dimension_values), strict=True))
        self._pending.append(Sample(self._kind, self._name, labels, float(value)))


@dataclass(frozen=True)
class Metrics:
    """``cache``: kind of metric -> name -> metric."""

    cache: Mapping[str, Mapping[str, Instrument]]


@dataclass
class BatchContext:
    """Of one batch: the headers of its rows, and what the handler sets for each of them."""

    headers: Sequence[Mapping[str, str]]
    statuses: dict[int, int] = field(default_factory=dict)
    types: dict[int, str] = field(default_factory=dict)
    sent_headers: dict[int, dict[str, str]] = field(default_factory=dict)

    def get_all_request_header(self, n: int) -> Mapping[str, str]:
        return self.headers[n]

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.types[idx] = value

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        if key != _ENDS_STREAM:
            self.sent_headers.setdefault(idx, {})[key] = value

    def answers(self, bodies: Sequence[str | bytes]) -> list[Answer]:
        return [
            Answer(self.statuses.get(n, 200), self.types.get(n, JSON), body, self.sent_headers.get(n, {}))
            for n, body in enumerate(bodies)
        ]


class StartContext:
    """Of a handler's start: where the archive is unpacked, its configuration, its device and its metrics."""

    def __init__(self, entry: ServedEntry, folder: Path, *, batch_size: int, gpu: int | None, metrics: Metrics) -> None:
        self.model_name = entry.name
        self.manifest = {"model": {"modelName": entry.name, "modelVersion": entry.version}}
        self.model_yaml_config = dict(entry.config)
        self.system_properties = {"model_dir": str(folder), "batch_size": batch_size, "gpu_id": gpu}
        self.metrics = metrics
