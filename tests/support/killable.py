"""Processes to be killed in tests: forked from one that has imported torch and convlens once, instead of each anew."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import IO, Any

# Nothing here may compute when it is imported: torch's threads would not live on in the forks.
_IMPORTED = ("torch", "torchvision", "timm", "convlens.jobs", "convlens.gallery", "convlens.features.extract")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(_IMPORTED))


class Killable:
    """Runs ``function(*arguments)``, which must be importable; ``output`` is what it writes, errors too."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        receive, send = _CONTEXT.Pipe(duplex=False)
        self._process: ForkServerProcess = _CONTEXT.Process(target=_run, args=(send, function, arguments), daemon=True)
        self._process.start()
        send.close()
        self.output: IO[str] = os.fdopen(os.dup(receive.fileno()))
        receive.close()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def exitcode(self) -> int | None:
        """Minus the signal where one ended it, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> str:
        """By SIGKILL, at whatever it does; what it had still written."""
        self._process.kill()
        return self._rest(30)

    def ended(self, within_s: float) -> tuple[int | None, str]:
        """Its exit status at its end, and all that it wrote."""
        text = self._rest(within_s)
        return self.exitcode, text

    def _rest(self, within_s: float) -> str:
        self._process.join(within_s)
        assert not self._process.is_alive(), f"it has not ended after {within_s:g} s"
        with self.output as output:
            return output.read()


def run_command_line(folder: Path, arguments: Sequence[str]) -> None:
    """``convlens`` with these arguments, in that folder; for a process of its own."""
    from convlens.cli.main import main

    os.chdir(folder)
    sys.argv = ["convlens", *arguments]
    # Whoever starts the tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


def _run(send: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    for stream in (1, 2):
        os.dup2(send.fileno(), stream)
    send.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    function(*arguments)
