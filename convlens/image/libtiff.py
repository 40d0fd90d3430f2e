"""libtiff, as Pillow carries it: silent, and with the bound on scans of the JPEGs in TIFFs."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache

from PIL import _imaging

from convlens.image.bounds import JPEG_SCANS_IN_TIFF

_HANDLERS = ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandler", "TIFFSetWarningHandlerExt")


@cache
def configure() -> None:
    """Set libtiff up, once for the whole process.

    By itself it writes what it finds wrong with a file to standard error; Pillow raises an OSError for the same. And it
    takes JPEGs of 100 scans, unless this variable says otherwise.
    """
    os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(JPEG_SCANS_IN_TIFF))
    # A name is looked for in the libraries that an extension module was linked with as well. Where libtiff is part of
    # the module, or missing, there is no such name.
    library = ctypes.CDLL(_imaging.__file__)
    for name in _HANDLERS:
        with suppress(AttributeError):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = (ctypes.c_void_p,), ctypes.c_void_p
            setter(None)
