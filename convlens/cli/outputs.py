"""Checks of what ``-o`` names, made before a model is loaded: nobody should wait for work whose result has no place."""

from __future__ import annotations

from pathlib import Path

from convlens.errors import RequestError
from convlens.utils.files import require_writable, require_writable_file


def require_replaceable(folder: Path, *, marker: str, contents: str) -> None:
    """RequestError unless the folder is missing, empty, or holds the file that marks results of the same command, and
    can be replaced by a new one.
    """
    require_movable(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).is_file())):
        raise RequestError(
            f"{folder} holds other things than {contents}; choose a new folder or empty it", field="output"
        )


def require_movable(folder: Path) -> None:
    """RequestError where a finished folder cannot take the place of this one."""
    # A folder is written beside the old one and renamed, which needs the folder that both lie in.
    if Path.cwd().is_relative_to(folder.resolve()):
        raise RequestError(
            f"{folder} holds the folder that this command runs in and cannot be replaced; choose another",
            field="output",
        )
    require_writable(folder.parent, path=folder)


def require_png(path: Path) -> None:
    """RequestError for a figure's file name with another ending, since a figure is written as PNG only, and where no
    such file can be written.
    """
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path} should end in .png: the figure is written as PNG", field="output")
    require_writable_file(path)
