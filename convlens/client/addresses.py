"""Addresses of servers. The standard library alone, because a container's health check loads this every few seconds."""

from __future__ import annotations

import ipaddress

from convlens.errors import RequestError


def is_loopback(host: str) -> bool:
    """Whether this machine itself is meant, which no proxy for the outside knows."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_of(address: str) -> str:
    """The host of a gRPC address, HOST:PORT. Raises RequestError for anything else, such as a URL."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        raise RequestError(f"{address!r} should read HOST:PORT, such as 127.0.0.1:7070", field="address")
    return host
