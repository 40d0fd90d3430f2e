"""The forms that a reply can take, and the one to answer a request in."""

from __future__ import annotations

from typing import Literal, get_args

from convlens.errors import NotAcceptableError

Media = Literal["application/json", "image/png", "application/vnd.safetensors", "application/x-npz"]
JSON: Media = "application/json"
PNG: Media = "image/png"
SAFETENSORS: Media = "application/vnd.safetensors"
NPZ: Media = "application/x-npz"

# What a wildcard stands for: JSON where anything will do, an overlay where any image will.
_WILDCARDS: dict[str, Media] = {"*/*": JSON, "application/*": JSON, "image/*": PNG}


def negotiate_media_type(accept: str) -> Media:
    """The form to answer in, by the value of an Accept header (RFC 9110, section 12.5.1); JSON where it is empty.

    The highest quality wins, then the order in the header. Raises NotAcceptableError (406) naming the forms there are.
    """
    best: Media | None = None
    best_quality = 0.0
    for entry in accept.split(","):
        name, _, parameters = entry.partition(";")
        media, quality = _media_type(name.strip().lower()), _quality(parameters)
        if media is not None and quality > best_quality:
            best, best_quality = media, quality
    if best is not None:
        return best
    if not accept.strip():
        return JSON
    raise NotAcceptableError(
        f"Accept names none of the forms a reply can take: {', '.join(get_args(Media))}", field="accept"
    )


def _media_type(name: str) -> Media | None:
    return next((media for media in get_args(Media) if media == name), _WILDCARDS.get(name))


def _quality(parameters: str) -> float:
    # 1 where the entry gives none (RFC 9110, section 12.4.2); 0, which means never, where it cannot be read.
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            try:
                return min(1.0, float(value))
            except ValueError:
                return 0.0
    return 1.0
