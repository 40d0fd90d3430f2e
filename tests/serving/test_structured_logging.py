"""A worker's log: one line of JSON for each request, and nothing that TorchServe obeys or that fools a reader."""

from __future__ import annotations

import functools
import json
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

from convlens.engine.batch import MethodRecord, RequestRecord
from convlens.errors import DeadlineError, ImageError
from convlens.serving.structured_logging import JsonLineFormatter, request_fields, sanitise

# As TorchServe's frontend splits what a worker writes (java.util.Scanner), and the lines it obeys (WorkerLifeCycle).
BREAKS = re.compile("\r\n|[\n\r\u2028\u2029\u0085]")
OBEYED = re.compile(r"(INFO > )?\[METRICS].*|.*\[PID]\d+|.*Torch worker started\.")
FORGED = [
    f'x{brk}[METRICS]a.Count:1|#L:1|#hostname:h,1{brk}[PID]1{brk}{{"logger":"convlens.access"}}{brk}\x1b[2J\ud800\x7f'
    for brk in ("\n", "\r", "\r\n", "\u2028", "\u2029", "\x85")
] + ["[PID]17", "Torch worker started.", "INFO > [METRICS]a.Count:1|#L:1|#hostname:h,1"]

# What TorchServe's worker does before it loads a handler; then text of a client's everywhere it could get to.
WORKER = """
import json, logging, sys, warnings
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
logging.info("[PID]%d", 4711)
from convlens.serving import structured_logging as logs
from convlens.engine.batch import RequestRecord
logs.setup(); logs.setup()
text = json.loads(sys.argv[1])
logs.log_request(RequestRecord(text, (), None, 0.5, None), model=text, batch=1)
logging.getLogger("convlens.engine.executor").warning(text)
logging.getLogger("PIL.Image").warning(text)
warnings.warn(text)
for name in ("convlens.engine.executor", "ts.service"):
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger(name).exception("a request failed")
logging.getLogger("ts.metrics.caching_metric").info("[METRICS]real.Count:1|#L:1|#hostname:h,1")
"""


@functools.cache
def worker(text: str) -> tuple[list[str], str]:
    """The lines of such a worker's standard output, and its standard error."""
    command = [sys.executable, "-c", WORKER, json.dumps(text)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return BREAKS.split(done.stdout.decode("utf-8", "surrogatepass")), done.stderr.decode()


@pytest.mark.parametrize("text", FORGED)
def test_text_of_a_client_forges_no_line_that_the_server_obeys(text: str) -> None:
    lines, errors = worker(text)
    assert [line for line in lines if OBEYED.fullmatch(line)] == [
        "[PID]4711",
        "[METRICS]real.Count:1|#L:1|#hostname:h,1",
    ]
    assert errors == ""  # the server reads and obeys it as well


@pytest.mark.parametrize("text", FORGED)
def test_text_of_a_client_stays_inside_the_line_of_its_own_record(text: str) -> None:
    everything = worker(text)[0]
    assert "request" not in everything  # not a second time, as TorchServe's worker writes records
    lines = [line for line in everything if line.startswith("{")]
    access, warned, failed = [json.loads(line) for line in lines]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert (access["logger"], access["request_id"], access["model"]) == ("convlens.access", text, text)
    assert (warned["logger"], warned["message"]) == ("convlens.engine.executor", text)
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert failed["exception"].endswith(f"ValueError: {text}")


def test_a_line_tells_what_the_request_cost_and_how_it_ended() -> None:
    report = RequestRecord(
        "r-17",
        (MethodRecord("saliency", 0.01, 0), MethodRecord("occlusion", 0.2, 169)),
        0.0125,
        0.25,
        DeadlineError("deadline_ms is 200: the picture 'secret.jpg' …", field="deadline_ms"),
    )
    assert request_fields(report, model="net", batch=3) == {
        "request_id": "r-17",
        "model": "net",
        "methods": ["saliency", "occlusion"],
        "status": 504,
        "error": "DeadlineError",
        "ms": 250.0,
        "queue_ms": 12.5,
        "windows": 169,
        "batch": 3,
    }


def test_what_is_not_known_is_null_and_a_long_id_is_cut() -> None:
    result = request_fields(RequestRecord("x" * 500, (), None, 0.001, ImageError("secret")), model="net", batch=1)
    assert (result["queue_ms"], result["methods"], result["status"]) == (None, [], 400)
    assert result["request_id"] == "x" * 128
    assert "secret" not in json.dumps(result)


def test_the_time_is_that_of_the_record_in_utc() -> None:
    record: Any = logging.LogRecord("convlens.access", logging.INFO, "", 0, "request", None, None)
    record.created = 1_700_000_000.25
    assert json.loads(JsonLineFormatter().format(record))["time"] == "2023-11-14T22:13:20.250Z"


def test_an_ordinary_traceback_keeps_its_lines() -> None:
    text = "Traceback (most recent call last):\n  File \"a.py\", line 1, in f\n\tx[1] = {2: 'ä'}\nKeyError: 'ä'"
    assert sanitise(text) == text
