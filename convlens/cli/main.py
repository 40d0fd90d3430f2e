"""The command line: wiring only. Each command lives in a file of its own."""

from __future__ import annotations

import sys

import typer

from convlens.cli import archive, demo, explain, gallery, models, serve
from convlens.cli.console import console
from convlens.errors import ConvLensError

app = typer.Typer(
    help="Open the black box of convolutional networks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("explain")(explain.explain)
app.command("models")(models.models)
app.command("archive")(archive.archive)
app.command("serve")(serve.serve)
app.command("token")(serve.token)
app.command("demo")(demo.demo)
app.add_typer(gallery.app, name="gallery")


def main() -> None:
    """Run the command line; an error of ours is one line on standard error and exit code 2, never a traceback."""
    try:
        app()
    except ConvLensError as error:
        console.print(f"error: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
