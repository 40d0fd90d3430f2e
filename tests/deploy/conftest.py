"""One TorchServe behind the proxies of a file's tests, and a proxy for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nginx_proxy import Proxy, echoing, proxied

from convlens.torchserve.server import Server


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with echoing(tmp_path_factory.mktemp("behind")) as live:
        yield live


@pytest.fixture
def proxy(behind: Server) -> Iterator[Proxy]:
    with proxied(behind) as started:
        yield started
