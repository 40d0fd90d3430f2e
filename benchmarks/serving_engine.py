"""``Engine.run`` in a process of its own, with the threads and settings of a worker but no server around it.

Reads lines of JSON, the params of a request, from standard input; answers each with the seconds that it took.
Started by ``benchmarks/serving.py``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from other_process import OtherProcess


class EngineAlone:
    """The other process, seen from the benchmark; close it."""

    def __init__(self, folder: Path, picture: Path, *, threads: int, device: str = "cpu") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = OtherProcess(__file__, str(folder), str(picture), str(threads), device, env=environment)

    def seconds(self, params: Mapping[str, Any]) -> float:
        return float(self._process.ask(json.dumps(dict(params))))

    def close(self) -> None:
        self._process.close()


def main() -> None:
    from convlens import image
    from convlens.engine.backend import graphs_beside
    from convlens.engine.engine import Engine
    from convlens.gallery import Gallery
    from convlens.models import unpack
    from convlens.protocol.params import parse_params
    from convlens.protocol.requests import Request
    from convlens.runtime.torch_runtime import keep_freed_memory

    folder, picture, threads = Path(sys.argv[1]), image.read(sys.argv[2]), int(sys.argv[3])
    keep_freed_memory()
    classifier = unpack(folder / "model", device=sys.argv[4])
    paths = [folder / "graphs"] if (folder / "graphs").is_dir() else []
    graphs = graphs_beside(classifier, paths, threads=threads)
    engine = Engine(classifier, gallery=Gallery.open(folder / "gallery"), graphs=graphs)
    print("ready", flush=True)
    for line in sys.stdin:
        request = Request(picture, parse_params(json.loads(line)))
        started = time.perf_counter()
        (answer,) = engine.run([request])
        seconds = time.perf_counter() - started
        if isinstance(answer, Exception):
            raise answer
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
