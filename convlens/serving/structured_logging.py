"""A worker's log: every record of ours one line of JSON, with nothing in it that the server could take for its own.

TorchServe reads what a worker writes and obeys lines that begin with ``[METRICS]`` or ``[PID]``, so a line break that a
client got into a message would forge numbers. The log tells of a request what it cost and how it ended; never its
header, token, image, labels or an error's message, which may quote it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from convlens.engine.batch import RequestRecord
from convlens.errors import error_type

_access = logging.getLogger("convlens.access")

_PACKAGE = "convlens"
_MAX_ID = 128  # characters, as the schema allows; that of a request which broke it may be longer
_METRICS = "ts.metrics.caching_metric"  # the logger whose lines the server is meant to read
_MARKERS = re.compile(r"\[(METRICS|PID)\]|Torch worker started\.")
# What ends a line for Java or a terminal, or moves its cursor; a new line stays where it is a record's own.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_JSON_LINE = re.compile("^{", re.MULTILINE)  # the beginning of a line that looks like one of ours


def setup() -> None:
    """Log as this module says; for a worker to call once it starts, harmless when repeated.

    Records of ``convlens`` loggers go to standard output as JSON. Those of other libraries, warnings included, go where
    they went before, without control characters and without the server's markers.
    """
    ours = logging.getLogger(_PACKAGE)
    if not any(isinstance(handler.formatter, JsonLineFormatter) for handler in ours.handlers):
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JsonLineFormatter())
        ours.addHandler(handler)
    ours.propagate = False
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)  # they would go to standard error, where the server obeys markers as well
    for inherited in logging.getLogger().handlers:
        if not isinstance(inherited.formatter, _SanitisingFormatter):
            inherited.setFormatter(_SanitisingFormatter(inherited.formatter))


def log_request(record: RequestRecord, *, model: str, batch: int) -> None:
    """Log one line for one request, which shared its batch with ``batch - 1`` others."""
    if _access.isEnabledFor(logging.INFO):
        _access.info("request", extra={"request_fields": request_fields(record, model=model, batch=batch)})


def request_fields(record: RequestRecord, *, model: str, batch: int) -> dict[str, Any]:
    """The fields of a request's line: times in milliseconds, null where they are not known."""
    return {
        "request_id": record.request_id[:_MAX_ID],
        "model": model,
        "methods": [call.method for call in record.methods],
        "status": record.error.status if record.error else 200,
        "error": error_type(record.error) if record.error else None,
        "ms": _ms(record.seconds),
        "queue_ms": None if record.queue_wait_s is None else _ms(record.queue_wait_s),
        "windows": sum(call.windows for call in record.methods),
        "batch": batch,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


class JsonLineFormatter(logging.Formatter):
    """A record as one line of ASCII: its time (UTC), level, logger, message, fields, and a traceback as text."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": when, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        request = getattr(record, "request_fields", None)
        if isinstance(request, Mapping):
            line |= request
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"), default=str)


class _SanitisingFormatter(logging.Formatter):
    """Another formatter's text, sanitised but for the server's own records."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        text = self._inner.format(record)
        return text if record.name == _METRICS else sanitise(text)


def sanitise(text: str) -> str:
    """The text with control characters escaped, without the server's markers, and without lines like ours.

    Line breaks stay: a traceback has them.
    """
    text = _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)
    text = _MARKERS.sub(lambda match: match.group().strip("[]."), text)
    return _JSON_LINE.sub(" {", text)
