"""Ending a process and all that it started."""

from __future__ import annotations

import signal
import subprocess
import sys

from convlens.torchserve.launcher import end_group, group_members


def test_a_process_that_will_not_end_is_killed_with_the_children_it_started() -> None:
    deaf = "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN)"
    child = f"{deaf}; print(1, flush=True); time.sleep(60)"
    parent = f"{deaf}; subprocess.Popen([sys.executable, '-c', {child!r}]); print(1, flush=True); time.sleep(60)"
    leader = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    assert [leader.stdout.readline(), leader.stdout.readline()] == [b"1\n", b"1\n"]
    assert len(group_members(leader.pid)) == 2
    end_group(leader, grace_s=0.5)
    leader.stdout.close()
    assert group_members(leader.pid) == []
    assert leader.returncode == -signal.SIGKILL
