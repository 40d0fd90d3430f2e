"""Where the files lie that an archive and a server are made from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from convlens.errors import ServerError


def handlers_folder() -> Path:
    """The folder of the ``handlers`` package, found without importing it: it needs TorchServe's worker around it.

    Raises ServerError.
    """
    spec = importlib.util.find_spec("handlers")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ServerError("no handlers package; install ConvLens from a checkout of its repository")
    return Path(folders[0])


def package_folder() -> Path:
    """The folder of the ``convlens`` package that runs now."""
    return Path(__file__).resolve().parents[1]
