"""What every benchmark here shares: interleaved timing, the machine in words, a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(sides: Mapping[str, Callable[[], Any]], *, repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call, by side. Sides take turns, first one first and then the other, after a call to warm up."""
    for call in sides.values():
        _timed(call, device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            seconds[name].append(_timed(sides[name], device))
    return seconds


def _timed(call: Callable[[], Any], device: str) -> float:
    _finish(device)
    started = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ratios(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios turn by turn, and their quartiles: noise that lasts longer than a turn cancels."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    return statistics.median(each), low, high


def matmul_gflops(device: str, side: int = 2048, repeats: int = 10) -> float:
    """What torch reaches in the product of two float32 matrices: about what the processor can."""
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    seconds = interleaved({"product": lambda: a @ b}, repeats=repeats, device=device)["product"]
    return float(2 * side**3 / min(seconds) / 1e9)


def machine(device: str) -> dict[str, Any]:
    """The machine in words, without names that tell whose it is."""
    words = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return words | ({"gpu": torch.cuda.get_device_name()} if device.startswith("cuda") else {})


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a table; their keys head the columns."""
    heads = list(rows[0])
    cells = [heads, *([_shown(row[head]) for head in heads] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(path: Path, *, device: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """The rows and the machine as JSON, beside first and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    found = {"machine": machine(device), **more, "rows": list(rows)}
    beside.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)
