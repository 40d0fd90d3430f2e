"""A request's deadline: when it ends, and the error once it cannot be kept.

It is enforced in six places, in the order in which a request meets them; all but the fourth by ``Deadline.require``:

1. ``parse_request`` stops reading the image, or does not begin, once the deadline has passed.
2. ``Engine`` refuses a request whose deadline passed while it waited.
3. ``AdmissionController.require_seconds`` refuses one whose expected work no longer fits. Work that could not fit on
   an idle worker either is refused with 422 and advice, because sending the request again would not help.
4. ``TimeBudget.admit`` refuses a sweep beside which an admitted row of the batch would miss its deadline.
5. ``BatchExecutor`` does not start a method call after the deadline, nor a sweep that would end after it.
6. ``BatchExecutor`` stops a sweep between two batches of windows once the deadline has passed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from convlens.errors import DeadlineError
from convlens.protocol.params import Params

# Clocks of clients and servers differ a little. A time of sending outside this range means that one of them is wrong.
_OLDEST_S, _AHEAD_S = 3600.0, 5.0


@dataclass(frozen=True)
class Deadline:
    """When a request was sent and until when its answer is of use.

    ``waited_s``: from when the client sent it until its reading began, None where that is unknown. ``allowed_s``: the
    request's ``deadline_ms`` in seconds. ``due``: the moment it ends, by time.perf_counter(). Both None without one.
    """

    waited_s: float | None = None
    allowed_s: float | None = None
    due: float | None = None
    warning: str = ""

    @property
    def left_s(self) -> float:
        """Seconds from now on; infinite without a deadline, negative after it."""
        return float("inf") if self.due is None else self.due - time.perf_counter()

    def require(self, seconds: float) -> None:
        """DeadlineError (504) where so many seconds of work can no longer end in time."""
        left_s = self.left_s
        if self.allowed_s is None or seconds <= left_s:
            return
        reason = f"{(self.allowed_s - left_s) * 1e3:.0f} ms have passed since it was sent"
        if left_s >= 0:
            reason += f" and the work takes about {seconds * 1e3:.0f} more"
        raise DeadlineError(
            f"deadline_ms is {self.allowed_s * 1e3:.0f}: {reason}; allow more, or try again when less is going on",
            field="deadline_ms",
        )


def deadline_of(params: Params, sent_at: float | None, *, started: float, clock: float) -> Deadline:
    """The deadline of a request; ``started`` is when reading it began by time.perf_counter(), ``clock`` by time.time().

    It counts from ``sent_at``, else from the beginning of the reading. A ``sent_at`` of more than an hour ago or more
    than five seconds ahead is ignored with a warning.
    """
    waited_s, warning = None, ""
    if sent_at is not None:
        waited_s = clock - sent_at
        if -_AHEAD_S <= waited_s <= _OLDEST_S:
            waited_s = max(0.0, waited_s)
        else:
            offset = f"{abs(waited_s):.0f} s {'ago' if waited_s > 0 else 'ahead'}"
            warning = f"sent_at lies {offset} by the server's clock and was ignored; it is in seconds since 1970, UTC"
            waited_s = None
    if params.deadline_ms is None:
        return Deadline(waited_s, warning=warning)
    allowed_s = params.deadline_ms / 1e3
    return Deadline(waited_s, allowed_s, started - (waited_s or 0.0) + allowed_s, warning)
