"""captum's occlusion in a process of its own, as its users run it: torch's own allocator and threads.

Reads a line of JSON from standard input, the size of its chunks, and answers with a line when the map lies in a file.
Started by ``benchmarks/occlusion.py``, which takes the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class CaptumAlone:
    """The other process, seen from the benchmark; close it."""

    def __init__(self, model: str, picture: Path, *, target: int, window: int, stride: int, device: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        asked = json.dumps(
            {
                "model": model,
                "picture": str(picture),
                "target": target,
                "window": window,
                "stride": stride,
                "device": device,
            }
        )
        self._process = subprocess.Popen(
            [sys.executable, __file__, asked],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._said()

    def map(self, chunk: int) -> Any:
        """captum's map (H, W) with so many windows at a time."""
        import numpy as np

        assert self._process.stdin is not None
        self._process.stdin.write(f"{chunk}\n")
        self._process.stdin.flush()
        return np.load(self._said())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"captum's process ended with code {self._process.wait(timeout=60)}")
        return line


def main() -> None:
    import numpy as np
    import torch
    from captum.attr import Occlusion

    from convlens.models import load

    asked = json.loads(sys.argv[1])
    module = load(asked["model"], device=asked["device"]).module
    x_NCHW = torch.as_tensor(np.load(asked["picture"]), device=asked["device"])[None]
    window, stride = (3, asked["window"], asked["window"]), (3, asked["stride"], asked["stride"])
    out = Path(asked["picture"]).with_name("captum.npy")
    print("ready", flush=True)
    for line in sys.stdin:
        with torch.no_grad():
            found = Occlusion(module).attribute(
                x_NCHW, window, strides=stride, target=asked["target"], perturbations_per_eval=int(line)
            )
        np.save(out, found[0, 0].cpu().numpy())
        print(out, flush=True)


if __name__ == "__main__":
    main()
