"""Ctrl-C and SIGTERM at a moment that suits: between two steps of work, when what is done has been put away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interruption:
    """``received`` is the first signal that came, 0 while none has."""

    received: int = 0

    def deliver(self) -> None:
        """Have the signal do now what it would have done when it came; nothing where none came."""
        if self.received:
            signal.raise_signal(self.received)


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Interruption]:
    """Within the ``with`` a first Ctrl-C or SIGTERM is only noted; a second one acts at once.

    Afterwards signals act as before. In a thread, where Python handles no signals, nothing is deferred.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def note(number: int, _: FrameType | None) -> None:
        if interruption.received:
            restore()
            signal.raise_signal(number)
        interruption.received = interruption.received or number

    # Not what is ignored, as nohup has it. None: a handler that Python did not install and cannot put back.
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    earlier = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    for number in earlier:
        signal.signal(number, note)
    try:
        yield interruption
    finally:
        restore()
