"""The command line: wiring only. Each command is in a file of its own, imported only when it is the one to run."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Annotated

import typer

import convlens
from convlens.cli.console import print_error
from convlens.errors import ConvLensError

# Command -> (module and function, one line of help for the list of commands).
COMMANDS: dict[str, tuple[str, str]] = {
    "explain": ("explain:explain", "Explain images without a server: arrays, overlays and one HTML report."),
    "explore": ("explore:explore", "Explain images in the browser, by a page that works offline."),
    "gallery": ("gallery:app", "Build and query galleries for nearest neighbours."),
    "evaluate": ("evaluate:evaluate", "Measure which explanations of a model can be trusted; run again to resume."),
    "features": ("features:features", "Write the embeddings of many images; run again to resume."),
    "models": ("models:models", "List convolutional networks by name, or show one model's spec."),
    "receptive-field": ("inspection:receptive_field", "Show the receptive fields of each layer, exactly."),
    "filters": ("inspection:filters", "Draw the filters of a convolution, of several models side by side."),
    "activations": ("inspection:activations", "Draw a layer's feature maps for one image."),
    "patches": ("patches:patches", "Find the image crops that excite each channel of a layer most."),
    "atlas": ("atlas:atlas", "Make a site of every channel: what maximises it, what excites it; run again to resume."),
    "project": ("gallery_maps:project", "Map a gallery by PCA or t-SNE, as an image and a page to zoom into."),
    "neighbours": ("gallery_maps:neighbours", "Draw the nearest neighbours in feature space and in pixel space."),
    "ascent": ("synthesis:ascent", "Activation maximisation of classes, neurons, channels or layers."),
    "fool": ("synthesis:fool", "Adversarial example: the smallest change that makes the model predict a class."),
    "dream": ("synthesis:dream", "DeepDream: exaggerate in an image what activates a layer."),
    "invert": ("synthesis:invert", "Feature inversion: reconstruct an image from a layer's features."),
    "texture": ("synthesis:texture", "Texture synthesis: Gram matrices, quilting or Efros-Leung."),
    "lecture": ("lecture:lecture", 'Every figure of "Visualizing and Understanding" from one network, on one page.'),
    "jobs": ("jobs:app", "Run many synthesis jobs from a file; run again to resume."),
    "cache": ("cache:app", "List or clear what is kept for this machine, such as exported graphs."),
    "archive": ("archive:archive", "Build NAME.mar for TorchServe."),
    "export": ("export:export", "Export ONNX graphs, each compared with torch before it is written."),
    "serve": ("serve:serve", "Serve an archive on 127.0.0.1 until Ctrl-C."),
    "token": ("serve:token", "Print the token of the server that `convlens serve` started."),
    "query": ("query:query", "Predict and explain images on a running server, over REST or gRPC."),
    "probe": ("probe:probe", "Health check: whether a server answers a tiny inference."),
    "demo": ("demo:demo", "Serve a model, explain photographs over REST, write a report, stop the server."),
}


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application. It imports only the command that ``arguments`` names: torch takes seconds, a help text none."""
    app = typer.Typer(help="Explain convolutional networks.", no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_global_options)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, (home, line) in COMMANDS.items():
        command = _import(home) if name == chosen else _placeholder
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, help=line)
        else:
            # `export` parses its own options, --help included.
            settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
            context = settings if name == chosen == "export" else None
            app.command(name, help=None if name == chosen else line, context_settings=context)(command)
    return app


def main() -> None:
    """Run the command line; a ConvLensError is one line on standard error and exit code 2, never a traceback."""
    # torch's OpenMP reads this when it is imported. Its waiting threads spin by default, and where anything else runs
    # on the same cores that made a forward pass up to ten times slower (2 cores, load 4: 196 ms an image, not 17).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A server that was started must be stopped, however this process is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if _completion_is_requested():
            _skip_heavy_imports()
            build(_words_to_complete())()
        else:
            app = build(sys.argv[1:])
            _compute_in_float32()
            app()
    except ConvLensError as error:
        print_error(f"error: {error.message}")
        sys.exit(2)
    except OSError as error:  # such as a disk that is full by now: what was checked before the work may have changed
        print_error(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        sys.exit(2)


def _compute_in_float32() -> None:
    """Forbid TF32 and the like in this process, where the command computes at all; its ``--precision`` comes later."""
    if "torch" in sys.modules:
        from convlens.instrument import use_precision

        use_precision("float32")


def _import(home: str) -> Callable[..., None] | typer.Typer:
    module, _, name = home.partition(":")
    command: Callable[..., None] | typer.Typer = getattr(importlib.import_module(f"convlens.cli.{module}"), name)
    return command


def _placeholder() -> None:
    """Stands in the list of commands for one that is not imported."""


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"convlens {convlens.__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Explain convolutional networks."""


# --- shell completion -------------------------------------------------------------------------------------------------

# Importing a command takes seconds, which nobody waits for after pressing Tab. So while the shell asks for completions,
# the modules that a command runs on are empty stand-ins, and what it imports from them is ``str``: a type that every
# option accepts. The command's signature is the real one; its body never runs.
_REPLACED = ("convlens", "export", "numpy", "PIL")
_KEPT = ("convlens.cli", "convlens.errors")


def _completion_is_requested() -> bool:
    """Whether the shell runs this process to complete a line."""
    return "_CONVLENS_COMPLETE" in os.environ


def _words_to_complete() -> list[str]:
    """The words after ``convlens`` on the line to complete: bash hands them over in one variable, zsh in another."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return line.split()[1:]


def _skip_heavy_imports() -> None:
    """From now on, import stand-ins for everything but the command line itself. For a process that only completes."""
    sys.meta_path.insert(0, _StandIns())


class _StandIns(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = ".".join(fullname.split(".")[:2])
        if fullname.partition(".")[0] not in _REPLACED or package in _KEPT:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = lambda name: str
