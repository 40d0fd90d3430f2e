"""The paths of the API, for servers that route no requests by themselves as TorchServe does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

_MODEL = "(?P<model>[^/:]+)"
_PATHS = (
    re.compile(f"/(?P<verb>predictions|explanations)/{_MODEL}(/(?P<version>[^/]+)(/(?P<method>[^/]+))?)?/?"),
    re.compile(f"/v1/models/{_MODEL}:(?P<verb>predict|explain)"),
    re.compile(f"/v2/models/{_MODEL}(/versions/(?P<version>[^/]+))?/(?P<verb>infer|explain)"),
)


@dataclass(frozen=True)
class Route:
    """What a path asks: of which model, whether for its default explanations, and for one method by name.

    ``version`` and ``method`` are empty where the path names none.
    """

    model: str
    version: str
    explain: bool
    method: str


def parse_route(path: str) -> Route | None:
    """The route of a request's path, with or without a query; None for a path that is none of the API's."""
    path = path.partition("?")[0]
    for pattern in _PATHS:
        if match := pattern.fullmatch(path):
            parts = {name: unquote(text or "") for name, text in match.groupdict(default="").items()}
            explain = parts["verb"] in ("explain", "explanations")
            return Route(parts["model"], parts.get("version", ""), explain, parts.get("method", ""))
    return None
