"""``convlens models``: which names there are, or what is known of one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from convlens.cli.console import out, step
from convlens.models import listing, load


def models(
    name: Annotated[str, typer.Argument(help="A model's full name, to show its spec; or a source, such as timm.")] = "",
) -> None:
    """List the models by name, or show the spec of one."""
    if ":" not in name:
        for known in listing(name or None):
            out.print(str(known), markup=False, highlight=False)
        return
    with step(f"loading {name}"):
        spec = load(name).spec
    for key, value in asdict(spec).items():
        shown = f"{len(value)} ({', '.join(value[:3])}, …)" if key == "labels" else value
        out.print(f"{key:18} {shown}", markup=False, highlight=False)
