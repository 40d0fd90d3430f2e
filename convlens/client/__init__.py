"""Clients of a ConvLens server, ``Client`` over REST and ``GrpcClient`` over gRPC; both return the library's values.

with Client("http://127.0.0.1:8080", key_file="key_file.json") as client:
    reply = client.explain("cat.jpg", methods=["saliency"])
    reply.explanations[0].result.values_NCHW
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convlens.client.base import BaseClient
    from convlens.client.errors import FrontendError, RemoteError, UnreachableError
    from convlens.client.grpc_client import GrpcClient
    from convlens.client.http import Client

# Lazy (PEP 562), so that grpc is imported only where GrpcClient is named.
_HOMES = {
    "BaseClient": "convlens.client.base",
    "Client": "convlens.client.http",
    "FrontendError": "convlens.client.errors",
    "GrpcClient": "convlens.client.grpc_client",
    "RemoteError": "convlens.client.errors",
    "UnreachableError": "convlens.client.errors",
}

__all__ = ["BaseClient", "Client", "FrontendError", "GrpcClient", "RemoteError", "UnreachableError"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'convlens.client' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
