"""The page at ``/``: what is served here, and how to ask."""

from __future__ import annotations

import html
from collections.abc import Sequence

HEADERS = {"content-security-policy": "default-src 'none'", "x-content-type-options": "nosniff"}


def page(models: Sequence[str]) -> str:
    """For people who open the address in a browser; it names entries, and no secrets."""
    items = "".join(
        f"<li>{name}: <code>curl -T cat.jpg -H 'Authorization: Bearer $TOKEN' …/predictions/{name}</code>, "
        f"<code>…/explanations/{name}</code></li>"
        for name in map(html.escape, models)
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>ConvLens</title></head><body>'
        f"<h1>ConvLens on Ray Serve</h1><p>Model entries:</p><ul>{items}</ul>"
        "<p>Requests and replies are described in docs/rest.md.</p></body></html>"
    )
