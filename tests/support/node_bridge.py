"""The explorer's JavaScript, called from Python: ``tests/explorer/node_bridge.mjs`` in a process of Node's."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import convlens

NODE = shutil.which("node")
PAGE = Path(convlens.__file__).parent / "explorer" / "page"
SESSION, ON_PARTIAL = {"$session": True}, {"$partials": True}  # stand for them among the arguments of a call

_SCRIPT = Path(__file__).parents[1] / "explorer" / "node_bridge.mjs"
_TYPES = {
    "float32": "Float32Array",
    "float64": "Float64Array",
    "uint8": "Uint8ClampedArray",
    "int32": "Int32Array",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()} | {"Uint8Array": "uint8"}

Run = Callable[[str, np.ndarray, int, list[int] | None], Mapping[str, np.ndarray]]
"""A session: outputs by name of a graph's name, the images one after another, their number and each one's class."""


class JavaScriptError(Exception):
    """What the called function threw."""


class NodeBridge:
    """Arrays go over as typed arrays of their kind; objects are dicts. ``partials`` are those of the last call."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.partials: list[Any] = []

    def __call__(self, module: str, function: str, *arguments: Any, run: Run | None = None) -> Any:
        """What the module's function returns, awaited; JavaScriptError with its message where it throws."""
        self._write({"module": module, "function": function, "arguments": list(arguments)})
        while "run" in (answer := self._read()):
            assert run is not None, "a session is needed"
            graph, x, count, targets = answer["run"]
            outputs = run(graph, x, count, targets)
            self._write({name: {"data": data.reshape(-1), "dims": list(data.shape)} for name, data in outputs.items()})
        if "error" in answer:
            raise JavaScriptError(answer["error"])
        self.partials = answer["partials"]
        return answer["result"]

    def _write(self, message: Any) -> None:
        arrays: list[bytes] = []

        def packed(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                arrays.append(np.ascontiguousarray(value).tobytes())
                return {"$array": _TYPES[value.dtype.name], "bytes": len(arrays[-1])}
            if isinstance(value, Mapping):
                return {name: packed(part) for name, part in value.items()}
            return [packed(part) for part in value] if isinstance(value, list | tuple) else value

        header = json.dumps(packed(message)).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"".join([struct.pack("<I", len(header)), header, *arrays]))
        self._process.stdin.flush()

    def _read(self) -> Any:
        def unpacked(value: Any) -> Any:
            if isinstance(value, dict) and "$array" in value:
                return np.frombuffer(self._bytes(value["bytes"]), _DTYPES[value["$array"]])
            if isinstance(value, dict):
                return {name: unpacked(part) for name, part in value.items()}
            return [unpacked(part) for part in value] if isinstance(value, list) else value

        return unpacked(json.loads(self._bytes(struct.unpack("<I", self._bytes(4))[0])))

    def _bytes(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        assert len(data) == count, "Node has ended; see what it printed"
        return data


@contextmanager
def node_bridge(folder: Path) -> Iterator[NodeBridge]:
    """A bridge to copies of the page's modules in ``folder``, for Node to take them for modules by their package."""
    for module in PAGE.glob("*.js"):
        shutil.copy(module, folder)
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    command = [str(NODE), str(_SCRIPT), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield NodeBridge(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=20)
