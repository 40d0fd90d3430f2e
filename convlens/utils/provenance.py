"""Which versions of which packages made a result."""

from __future__ import annotations

import importlib.metadata


def package_version(package: str) -> str:
    """The installed version of a package, ``unknown`` where it is not installed, as ConvLens run from its source."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
