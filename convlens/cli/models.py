"""``convlens models``: which names there are, or what is known of one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from convlens.cli.console import out, step
from convlens.models import listing, load
from convlens.models.sources import source_names


def models(
    name: Annotated[str, typer.Argument(help="A model's full name, to show its spec; or a source, such as timm.")] = "",
) -> None:
    """List the models by name, or show the spec of one."""
    if not name or name in source_names():
        for known in listing(name or None):
            note = "" if known.weights_at_hand else "  (weights are downloaded)"
            out.print(f"{known.name}{note}", markup=False, highlight=False, soft_wrap=True)
        return
    with step(f"loading {name}"):
        spec = load(name, device="cpu").spec
    for key, value in asdict(spec).items():
        shown = f"{len(value)} ({', '.join(value[:3])}, …)" if key == "labels" else value
        out.print(f"{key:18} {shown}", markup=False, highlight=False, soft_wrap=True)
