"""The paths of the API, for servers that route no requests by themselves as TorchServe does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

# What a path leads to: an answer about images, what one model says of itself, or something of the whole server.
Resource = Literal[
    "answer", "metadata", "ready", "page", "ping", "metrics", "models", "server", "server_live", "server_ready"
]
_MODEL = "(?P<model>[^/:]+)"
_VERSIONED = f"/v2/models/{_MODEL}(/versions/(?P<version>[^/]+))?"
_ANSWERS = (
    re.compile(f"/(?P<verb>predictions|explanations)/{_MODEL}(/(?P<version>[^/]+)(/(?P<method>.+?))?)?/?"),
    re.compile(f"/v1/models/{_MODEL}:(?P<verb>predict|explain)"),
    re.compile(f"{_VERSIONED}/(?P<verb>infer|explain)"),
)
_DESCRIPTIONS: tuple[tuple[re.Pattern[str], Resource], ...] = (
    (re.compile(f"/v1/models/{_MODEL}"), "ready"),
    (re.compile(f"{_VERSIONED}/ready"), "ready"),
    (re.compile(_VERSIONED), "metadata"),
)
_OF_THE_SERVER: dict[str, Resource] = {
    "/": "page",
    "/ping": "ping",
    "/metrics": "metrics",
    "/v1/models": "models",
    "/v2": "server",
    "/v2/health/live": "server_live",
    "/v2/health/ready": "server_ready",
}


@dataclass(frozen=True)
class Route:
    """What a path asks: of which model, whether for its default explanations, and for one method by name.

    ``version`` and ``method`` are empty where the path names none, and so is ``model`` where ``resource`` is the
    server's.
    """

    model: str = ""
    version: str = ""
    explain: bool = False
    method: str = ""
    resource: Resource = "answer"

    @property
    def verbs(self) -> tuple[str, ...]:
        """The HTTP methods that the path takes. TorchServe passes a GET for an answer on, too."""
        return ("GET", "HEAD", "POST", "PUT") if self.resource == "answer" else ("GET", "HEAD")


def parse_route(path: str) -> Route | None:
    """The route of a request's path, percent-encoded as it was sent, with or without a query; None for a path that is
    none of the API's.
    """
    path = path.partition("?")[0]
    for pattern in _ANSWERS:
        if match := pattern.fullmatch(path):
            parts = _parts(match)
            return Route(
                parts["model"],
                parts.get("version", ""),
                parts["verb"] in ("explain", "explanations"),
                parts.get("method", ""),
            )
    for pattern, resource in _DESCRIPTIONS:
        if match := pattern.fullmatch(path):
            parts = _parts(match)
            return Route(parts["model"], parts.get("version", ""), resource=resource)
    of_the_server = _OF_THE_SERVER.get(path)
    return Route(resource=of_the_server) if of_the_server else None


def _parts(match: re.Match[str]) -> dict[str, str]:
    return {name: unquote(text or "") for name, text in match.groupdict(default="").items()}
