"""The library's version, on its own so that any part may read it."""

__version__ = "0.1.0"
