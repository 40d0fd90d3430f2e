"""A proxy for each test, before the server that says what reached it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nginx_proxy import Proxy, running_proxy

from convlens.torchserve.server import Server


@pytest.fixture
def proxy(echo: Server) -> Iterator[Proxy]:
    with running_proxy(echo) as started:
        yield started
