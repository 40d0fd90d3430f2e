"""A worker's log: every record of ours one line of JSON, with nothing in it that the server could take for its own.

TorchServe reads what a worker writes and obeys lines that begin with ``[METRICS]`` or ``[PID]``, so a line break that a
client got into a message would forge numbers. The log tells of a request what it cost and how it ended; never its
header, token, picture, labels or an error's message, which may quote it.
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
_LONGEST_ID = 128  # as the schema allows; that of a request which broke it may be longer
_METRICS = "ts.metrics.caching_metric"  # the logger whose lines the server is meant to read
_MARKERS = re.compile(r"\[(METRICS|PID)\]|Torch worker started\.")
# What ends a line for Java or a terminal, or moves its cursor; a new line stays where it is a record's own.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_OURS = re.compile("^{", re.MULTILINE)


def setup() -> None:
    """Log as this module says; for a worker to call once it starts, harmless when repeated.

    Records of ``convlens`` loggers go to standard output as JSON. Those of other libraries, warnings included, go where
    they went before, without control characters and without the server's markers.
    """
    ours = logging.getLogger(_PACKAGE)
    if not any(isinstance(handler.formatter, JsonLineFormatter) for handler in ours.handlers):
        lines = logging.StreamHandler(sys.stdout)
        lines.setFormatter(JsonLineFormatter())
        ours.addHandler(lines)
    ours.propagate = False
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)  # they would go to standard error, where the server obeys markers as well
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, SanitisingFormatter):
            handler.setFormatter(SanitisingFormatter(handler.formatter))


def log_request(report: RequestRecord, *, model: str, batch: int) -> None:
    """One line for one request, which shared its batch with ``batch - 1`` others."""
    if _access.isEnabledFor(logging.INFO):
        _access.info("request", extra={"request_fields": request_fields(report, model=model, batch=batch)})


def request_fields(report: RequestRecord, *, model: str, batch: int) -> dict[str, Any]:
    """What the line of a request holds."""
    error, waited_s = report.error, report.queue_wait_s
    return {
        "request_id": report.request_id[:_LONGEST_ID],
        "model": model,
        "methods": [call.method for call in report.methods],
        "status": error.status if error else 200,
        "error": error_type(error) if error else None,
        "ms": _ms(report.seconds),
        "queue_ms": None if waited_s is None else _ms(waited_s),
        "windows": sum(call.windows for call in report.methods),
        "batch": batch,
    }


class JsonLineFormatter(logging.Formatter):
    """A record as one line of ASCII: its time (UTC), level, logger, message, fields, and a traceback as text."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": when, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        given = getattr(record, "request_fields", None)
        if isinstance(given, Mapping):
            line |= given
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"), default=str)


class SanitisingFormatter(logging.Formatter):
    """Another formatter's text, made harmless but for the server's own records."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        text = self._inner.format(record)
        return text if record.name == _METRICS else sanitise(text)


def sanitise(text: str) -> str:
    """The text with control characters escaped, without what the server obeys, and no line like those of ours.

    Line breaks stay: a traceback has them.
    """
    for pattern, safe in ((_CONTROL, _escaped), (_MARKERS, _disarmed), (_OURS, " {")):
        text = pattern.sub(safe, text)
    return text


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode("ascii")


def _disarmed(found: re.Match[str]) -> str:
    return found.group().strip("[].")


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
