"""``convlens cache``: what ConvLens keeps for this machine, such as exported graphs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from convlens.cli.console import out, print_result
from convlens.utils.cache_dir import CacheDir, CacheEntry

app = typer.Typer(help="List or clear what is kept for this machine, such as exported graphs.", no_args_is_help=True)
_DAY_S = 24 * 3600


@app.command(name="list")
def list_entries() -> None:
    """List what is kept, most recently used first, with its folder and total size."""
    cache = CacheDir()
    entries = cache.entries()
    if entries:
        table = Table()
        for heading in ("model", "kind", "MB", "last used"):
            table.add_column(heading, justify="right" if heading == "MB" else "left", overflow="fold")
        for entry in reversed(entries):
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
            model, kind = (Text(entry.facts.get(name, "damaged")) for name in ("model", "kind"))
            table.add_row(model, kind, f"{entry.bytes / 1e6:.1f}", used)
        out.print(table)
    print_result(f"{_total(entries)} of at most {cache.most_bytes / 1e6:.0f} MB in {cache.folder}")


@app.command()
def clear(
    older_than: Annotated[
        float, typer.Option(min=0, help="Only what was not used for so many days.", show_default=False)
    ] = 0.0,
) -> None:
    """Remove what is kept, but nothing that another process is exporting or opening."""
    cache = CacheDir()
    removed = cache.clear(unused_for_s=older_than * _DAY_S)
    print_result(f"removed {_total(removed)} from {cache.folder}; {_total(cache.entries())} left")


def _total(entries: Sequence[CacheEntry]) -> str:
    size = sum(entry.bytes for entry in entries) / 1e6
    return f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {size:.1f} MB,"
