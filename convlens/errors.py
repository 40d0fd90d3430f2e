"""Everything that can go wrong, each with the HTTP status that a server answers with.

ConvLensError               500
├── RequestError            422   parameters that cannot be honoured
│   ├── TargetError         422   no such class, or more than one of that name
│   ├── UnsupportedModelError 422 the method is not defined for this network
│   ├── GalleryError        422   no gallery, a gallery of other weights, a damaged one
│   └── JobError            422   a job's folder that cannot be used, a job that diverged
├── ImageError              400   not an image, or a damaged one
│   ├── ImageTooLargeError  413   more bytes, pixels or parts than allowed
│   └── MediaTypeError      415   a body whose declared type is no image
├── NotAcceptableError      406   a form of reply that does not exist
├── OverloadError           503   more work than the time allowed for it holds
├── DeadlineError           504   a request whose time is up, or would be
├── OutOfMemoryError        507   memory ran out, also with smaller batches
├── ModelError              500   a model that cannot be found, loaded or trusted
└── ServerError             500   a server that cannot be started or reached
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ConvLensError(Exception):
    """Base of all errors; ``message`` says what was given, what is possible and what to do.

    ``field`` is the request parameter at fault, such as ``options.stride``; None where there is none. ``detail`` is
    what only the user of this process may read of an internal error: its own words and its place.
    """

    status = 500

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = ""
        self.field = field


class RequestError(ConvLensError):
    status = 422


class TargetError(RequestError):
    pass


class UnsupportedModelError(RequestError):
    pass


class GalleryError(RequestError):
    pass


class JobError(RequestError):
    pass


class ImageError(ConvLensError):
    status = 400


class ImageTooLargeError(ImageError):
    status = 413


class MediaTypeError(ImageError):
    status = 415


class NotAcceptableError(ConvLensError):
    status = 406


class OverloadError(ConvLensError):
    status = 503


class DeadlineError(ConvLensError):
    status = 504


class OutOfMemoryError(ConvLensError):
    status = 507


class ModelError(ConvLensError):
    status = 500


class ServerError(ConvLensError):
    status = 500


def near_matches(name: str, known: Iterable[str]) -> str:
    """``; did you mean a, b?`` for the up to five known names nearest to this one, or the empty string."""
    close = difflib.get_close_matches(name.lower(), list(known), n=5, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def unknown_name(noun: str, name: str, known: Sequence[str]) -> str:
    """The message for a name that is none of those known: ``no method 'x'; did you mean y?; there are: y, z``."""
    return f"no {noun} {name!r}{near_matches(name, known)}; there are: {', '.join(known)}"


def error_type(error: ConvLensError) -> str:
    """The name of the error's class, or of its nearest base that is defined here."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)
