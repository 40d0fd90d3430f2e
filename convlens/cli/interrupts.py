"""What a command says when Ctrl-C or SIGTERM ends it: what is done and kept, and how to go on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import typer

from convlens.cli.console import print_warning

GO_ON = "run the same command again to go on"


@dataclass
class Stop:
    """``code`` is the exit code of the signal that came, as shells have it; 0 while none has."""

    code: int = 0

    def leave(self) -> None:
        """End the command where a signal came."""
        if self.code:
            raise typer.Exit(self.code)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C or SIGTERM ends the ``with``, not the command, which then puts away what is finished."""
    stop = Stop()
    try:
        yield stop
    except KeyboardInterrupt:
        stop.code = exit_code(signal.SIGINT)
    except SystemExit as error:  # main() has SIGTERM raise it
        if error.code != exit_code(signal.SIGTERM):
            raise
        stop.code = exit_code(signal.SIGTERM)


@contextlib.contextmanager
def resumable(kept: Callable[[], str]) -> Iterator[None]:
    """Where Ctrl-C or SIGTERM ends the ``with``, say what is ``kept`` and how to go on, and end the command."""
    with stoppable() as stop:
        yield
    if stop.code:
        print_warning(f"interrupted: {kept()}; {GO_ON}")
        stop.leave()


def exit_code(number: int) -> int:
    """By which a command says that a signal ended it."""
    return 128 + number
