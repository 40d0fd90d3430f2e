"""What TorchServe's logs say about a start that failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# "2026-01-02T03:04:05,678 [INFO ] W-9000-net_1.0-stdout MODEL_LOG - text"
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,]+ \[(\w+) *\] \S+ \S+ - ")
_TROUBLE = re.compile(r"^(Caused by: |Invalid configuration|Error|Exception in thread|\S+(Exception|Error)(: |$))")
# Said in every start, also the good ones.
_USUAL = ("enable_", "Metrics mode", "Unrecognized options", "sun.misc.Unsafe", "java.lang.InterruptedException: null")
_DEAD = re.compile(r"State change \S+ -> WORKER_STOPPED|Backend worker process died|Load model failed")
_ENDING = "Failed to bind to address"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_FOREIGN = ("/site-packages/ts/", "<frozen ", "/importlib/")
_LONGEST = 300


def started(logs: Path) -> bool:
    """Whether all of the server's ports are open."""
    return "Model server started." in _lines(logs / "console.log")


def worker_died(logs: Path) -> bool:
    """Whether a worker ended by itself. In a start none should, and TorchServe would retry for five minutes.

    Workers of a server that found its port taken do not count: it is about to end and takes them along.
    """
    lines = list(_lines(logs / "ts_log.log"))
    return any(_DEAD.search(line) for line in lines) and not any(_ENDING in line for line in lines)


def trouble(logs: Path, *, most: int = 15) -> list[str]:
    """The lines that tell why: the last Python traceback of a worker, else what the server warned of or died from."""
    found = _last_traceback(logs / "model_log.log") or _complaints(logs)
    return [line[:_LONGEST] for line in found[-most:]]


def _last_traceback(path: Path) -> list[str]:
    """From "Traceback" to the exception's own line, with those it followed from: TorchServe hides a handler's
    ImportError behind one of its own. Worker log lines come as INFO, whatever they are.
    """
    block: list[str] = []
    for line in (_PREFIX.sub("", line) for line in _lines(path)):
        if line.startswith("Traceback") and not (block and block[-1].startswith(_CHAINED)):
            block = [line]
        elif block and (line.startswith((" ", "Traceback", *_CHAINED)) or block[-1].startswith((" ", "Traceback"))):
            block.append(line)
    return list(_without_foreign_frames(block))


def _without_foreign_frames(block: Iterable[str]) -> Iterator[str]:
    """Without TorchServe's and importlib's frames (a "File" line and the code below it), the same in each failure."""
    foreign = False
    for line in block:
        if not line.startswith("    "):
            foreign = line.startswith("  File") and any(place in line for place in _FOREIGN)
        if line and not foreign:
            yield line


def _complaints(logs: Path) -> list[str]:
    lines = [
        line
        for name in ("model_log.log", "console.log", "ts_log.log")
        for line in _lines(logs / name)
        if _complains(line)
    ]
    return list(dict.fromkeys(_PREFIX.sub("", line) for line in lines))


def _complains(line: str) -> bool:
    if any(words in line for words in _USUAL):
        return False
    level = _PREFIX.match(line)
    return level.group(1) in ("WARN", "ERROR") if level else bool(_TROUBLE.match(line))


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line.rstrip("\n") for line in file)
