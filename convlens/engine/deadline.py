"""When a request came, and until when its answer is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from convlens.errors import DeadlineError
from convlens.protocol.requests import Request

_OLDEST_S, _AHEAD_S = 3600.0, 5.0  # clocks differ; by more than this they are wrong


@dataclass(frozen=True)
class Deadline:
    """``waited_s`` from when the client sent it until the run began, None where that is not known.

    ``allowed_s`` is the request's deadline, counted from when it was sent, ``due`` the end of that by
    time.perf_counter(); both None without one.
    """

    waited_s: float | None = None
    allowed_s: float | None = None
    due: float | None = None
    warning: str = ""

    def require(self, seconds: float, *, now: float) -> None:
        """DeadlineError (504) where so many seconds of work can no longer end in time."""
        if self.due is None or self.allowed_s is None or now + seconds <= self.due:
            return
        spent = now - (self.due - self.allowed_s)
        if now > self.due:
            said = f"{spent * 1e3:.0f} ms have passed since it was sent"
        else:
            said = (
                f"{spent * 1e3:.0f} ms have passed since it was sent and the work takes about {seconds * 1e3:.0f} more"
            )
        raise DeadlineError(
            f"deadline_ms is {self.allowed_s * 1e3:.0f}: {said}; allow more, or try again when less is going on",
            field="deadline_ms",
        )


def deadline_of(request: Request, *, started: float, clock: float) -> Deadline:
    """What the request says of its sending; ``started`` is the run's beginning by time.perf_counter(), ``clock`` the
    same moment by time.time().

    A ``sent_at`` of more than an hour ago or more than five seconds ahead is ignored with a warning.
    """
    waited_s, warning = None, ""
    if request.sent_at is not None:
        waited_s = clock - request.sent_at
        if not -_AHEAD_S <= waited_s <= _OLDEST_S:
            when = f"{abs(waited_s):.0f} s {'ago' if waited_s > 0 else 'ahead'}"
            warning = f"sent_at lies {when} by the server's clock and was ignored; it is in seconds since 1970, UTC"
            waited_s = None
        else:
            waited_s = max(0.0, waited_s)
    if request.params.deadline_ms is None:
        return Deadline(waited_s, warning=warning)
    allowed_s = request.params.deadline_ms / 1e3
    return Deadline(waited_s, allowed_s, started - (waited_s or 0.0) + allowed_s, warning)
