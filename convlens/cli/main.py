"""The command line: wiring only. Each command lives in a file of its own, imported when it is the one asked for."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

import typer

from convlens.cli.console import console
from convlens.errors import ConvLensError

# Command -> (function in the file of that name unless said otherwise, one line of help).
COMMANDS: dict[str, tuple[str, str]] = {
    "explain": ("explain:explain", "Explain pictures without a server: arrays, overlays and one HTML report."),
    "gallery": ("gallery:app", "Galleries for nearest neighbours."),
    "features": ("features:features", "Write the features of many pictures; goes on where a kill cut it short."),
    "models": ("models:models", "List the models by name, or show the spec of one."),
    "receptive-field": ("inspection:receptive_field", "Which pixels the units of each layer look at."),
    "filters": ("inspection:filters", "Draw the filters of a convolution, of several models side by side."),
    "activations": ("inspection:activations", "Draw what a picture makes the channels of a layer say."),
    "patches": ("patches:patches", "The crops of a folder's pictures that excite each channel of a layer most."),
    "project": ("gallery_maps:project", "A map of a gallery: PCA or t-SNE, as a picture and as a page to zoom into."),
    "neighbours": ("gallery_maps:neighbours", "The nearest pictures in feature space and in pixel space, as a figure."),
    "ascent": ("synthesis:ascent", "Pictures that maximise classes, neurons or channels."),
    "fool": ("synthesis:fool", "The smallest change that turns one class into another."),
    "dream": ("synthesis:dream", "DeepDream: what a layer sees in a picture, exaggerated."),
    "invert": ("synthesis:invert", "The picture that a layer's features still tell."),
    "texture": ("synthesis:texture", "New texture from a sample: Gram matrices, quilting, Efros-Leung."),
    "jobs": ("jobs:app", "Run many synthesis jobs from a file; they go on where a kill cut them short."),
    "archive": ("archive:archive", "Build NAME.mar, which TorchServe serves."),
    "export": ("export:export", "Write ONNX graphs that agreed with torch before they got their name."),
    "serve": ("serve:serve", "Serve an archive on 127.0.0.1 until Ctrl-C."),
    "token": ("serve:token", "Print the token of the server that `convlens serve` started."),
    "query": ("query:query", "Ask a running server, over REST or gRPC."),
    "probe": ("query:probe", "Whether a server answers a tiny inference; for health checks."),
    "demo": ("demo:demo", "Serve, explain photographs over REST, write a report, stop the server."),
}


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application; only the command that ``arguments`` names is imported: torch takes seconds, a help text none."""
    app = typer.Typer(
        help="Open the black box of convolutional networks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    asked = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, (home, line) in COMMANDS.items():
        found = _imported(home) if name == asked else _placeholder
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, help=line)
        else:
            # `export` reads its own options, --help included.
            settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
            context = settings if name == asked == "export" else None
            app.command(name, help=None if name == asked else line, context_settings=context)(found)
    return app


def main() -> None:
    """Run the command line; an error of ours is one line on standard error and exit code 2, never a traceback."""
    # Read when torch is imported, by its OpenMP. Waiting threads otherwise spin, and where anything else runs on the
    # same cores that made a forward pass up to ten times slower (two cores, load 4: 196 ms a picture instead of 17).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A server that was started must be stopped, however this process is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        build(sys.argv[1:])()
    except ConvLensError as error:
        console.print(f"error: {error.message}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _imported(home: str) -> Callable[..., None] | typer.Typer:
    module, _, name = home.partition(":")
    found: Callable[..., None] | typer.Typer = getattr(importlib.import_module(f"convlens.cli.{module}"), name)
    return found


def _placeholder() -> None:
    """Stands for a command in the list of commands."""
