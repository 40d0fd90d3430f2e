"""A script in a process of its own, which answers each line of standard input with a line; seen from a benchmark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping


class OtherProcess:
    """Started with ``arguments``, the script's path first; it says a line when it is ready. Close it."""

    def __init__(self, *arguments: str, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._said()

    def ask(self, line: str) -> str:
        """The answer to one line. RuntimeError where the process has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._said()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the other process ended with code {self._process.wait(timeout=60)}")
        return line
