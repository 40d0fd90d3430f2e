"""What the live tests of the clients share beside their server."""

from __future__ import annotations

from collections.abc import Callable

from convlens.client import BaseClient

Connect = Callable[..., BaseClient]

# The entry of a small network whose labels are no ASCII.
FOREIGN = "foreign"
LABELS = (*(f"Gürteltier 犰狳 {number} – „å“" for number in range(999)), "🦔")

# Requests that a worker takes at a time, and how many more may wait.
BATCH, QUEUE = 4, 12
