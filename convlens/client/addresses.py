"""Which addresses are this machine's own."""

from __future__ import annotations

import ipaddress


def on_this_machine(host: str) -> bool:
    """A proxy for the outside, as the environment may name one, does not know these."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
