"""What it costs to check at load that a network's answer is a function of the image, on every family of graphs.

    python benchmarks/load_checks.py --repeats 3

The check is one pass of one image, compared with its row of the two that the layers are discovered by; it finds the
memory format as well. Each load is a process of its own, which imports ConvLens and loads (untrained weights: nothing
is read or downloaded, which would take longer); ``share`` is the check's part of it, medians. ``off by`` is what the
comparison saw, relative to the largest logit: it must stay far below the check's tolerance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from table import RESULTS, show, write

from export.compatibility import FAMILIES

_LOAD = """
import json, sys, time
started = time.perf_counter()
import convlens, torch
from convlens.models import loader
inner, seen = loader.check_repeatable, {}

def timed(module, x_NCHW, logits_NK, *, allow):
    began = time.perf_counter()
    warnings = inner(module, x_NCHW, logits_NK, allow=allow)
    seen["check"] = time.perf_counter() - began
    with torch.no_grad():
        off = (module(x_NCHW[:1]) - logits_NK[:1]).abs().max() / logits_NK.abs().max()
    seen["off"], seen["own"] = float(off), time.perf_counter() - began - seen["check"]
    return warnings

loader.check_repeatable = timed
convlens.load(sys.argv[1], device="cpu")
print(json.dumps([time.perf_counter() - started - seen["own"], seen["check"], seen["off"]]))
"""


def measured(name: str, repeats: int) -> dict[str, Any]:
    runs = [
        json.loads(
            subprocess.run([sys.executable, "-c", _LOAD, name], capture_output=True, check=True, text=True).stdout
        )
        for _ in range(repeats)
    ]
    seconds, check, off = (statistics.median(values) for values in zip(*runs, strict=True))
    return {"model": name, "load seconds": seconds, "check seconds": check, "share": check / seconds, "off by": off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=FAMILIES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "load-checks-cpu.json")
    given = parser.parse_args()
    rows = [measured(name, given.repeats) for name in given.models]
    show(rows)
    write(given.out, device="cpu", rows=rows, repeats=given.repeats)


if __name__ == "__main__":
    main()
