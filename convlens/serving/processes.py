"""Ending a process and everything it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil


def end_group(leader: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """End the leader of a process group, then whatever of its group lives on; returns when none does.

    The leader gets SIGTERM alone first: TorchServe starts a new worker for one that dies while it still runs. What is
    left after ``grace_s`` seconds is killed.
    """
    if leader.poll() is None:
        leader.terminate()
        with suppress(subprocess.TimeoutExpired):
            leader.wait(grace_s)
    _signal(leader.pid, signal.SIGTERM)
    if not _gone(leader.pid, within_s=grace_s):
        _signal(leader.pid, signal.SIGKILL)
        _gone(leader.pid, within_s=grace_s)
    leader.wait()


def members(group: int) -> list[psutil.Process]:
    """The living processes of a group; those that ended and wait for a parent to notice do not count."""
    return [process for process in psutil.process_iter() if _alive_in(process, group)]


def _alive_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


def _signal(group: int, number: int) -> None:
    for process in members(group):
        with suppress(psutil.Error):
            process.send_signal(number)


def _gone(group: int, *, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while members(group):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
