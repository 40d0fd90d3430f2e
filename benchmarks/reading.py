"""How long hostile image files of 20 MB or 49 megapixels take to read or to be refused, by the time that is allowed.

    python benchmarks/reading.py

The files are those of the tests, at the size that hurts most. Seconds are of one core (thread time), the least of the
repeats. ``allowed`` is 0.5 s and 30 ms for each megapixel that comes out; a refusal has 0.5 s.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from table import RESULTS, show, write

from convlens.errors import ImageError
from convlens.image import Limits, decode
from convlens.image.bounds import allowed_seconds

sys.path.append(str(Path(__file__).parents[1] / "tests/support"))
from slow_images import SLOW

TOTAL, SIDE = Limits().bytes - 1000, 7000


def measured(name: str, repeats: int) -> dict[str, Any]:
    data = SLOW[name].make(TOTAL, SIDE)
    seconds, pixels, outcome = [], 0, "read"
    for _ in range(repeats):
        started = time.thread_time()
        try:
            image = decode(data)
            pixels = image.width * image.height
        except ImageError as error:
            outcome = str(error.status)
        seconds.append(time.thread_time() - started)
    allowed = allowed_seconds(pixels)
    row = {"file": name, "MB": len(data) / 1e6, "megapixels": pixels / 1e6, "outcome": outcome}
    return row | {"seconds": min(seconds), "allowed": allowed, "share": min(seconds) / allowed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "reading-cpu.json")
    given = parser.parse_args()
    rows = [measured(name, given.repeats) for name in SLOW]
    show(rows)
    write(given.out, device="cpu", rows=rows, repeats=given.repeats, longest_share=max(row["share"] for row in rows))


if __name__ == "__main__":
    main()
