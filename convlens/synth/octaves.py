"""Octaves of DeepDream: the picture at several sizes, the dream's detail carried from each to the next larger."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from convlens.errors import RequestError

SMALLEST = 48  # pixels: below, networks of stride 32 have a map of one unit
Size = tuple[int, int]


def octave_sizes(size: Size, *, octaves: int, scale: float) -> list[Size]:
    """(height, width) from the smallest to ``size``, each ``scale`` times the one before.

    RequestError for a picture too small for so many, with the largest number that fits.
    """
    found = [_shrunk(size, scale**n) for n in range(octaves)]
    if min(found[-1]) < SMALLEST:
        most = sum(min(_shrunk(size, scale**n)) >= SMALLEST for n in range(octaves))
        what = f"at most {most} octaves fit" if most else f"it should be {SMALLEST} pixels or more each way"
        raise RequestError(
            f"a picture of {size[1]}×{size[0]} is too small for {octaves} octaves of scale {scale:g}: {what}",
            field="octaves",
        )
    return found[::-1]


def at_size(x_NCHW: Tensor, size: Size) -> Tensor:
    """Resized bilinearly, smaller without aliasing."""
    if tuple(x_NCHW.shape[2:]) == size:
        return x_NCHW
    return functional.interpolate(x_NCHW, size=size, mode="bilinear", align_corners=False, antialias=True)


def carried(x_NCHW: Tensor, from_NCHW: Tensor, to_NCHW: Tensor) -> Tensor:
    """What was dreamt into ``from``, laid over the larger ``to``."""
    height, width = to_NCHW.shape[2:]
    return to_NCHW + at_size(x_NCHW - from_NCHW, (height, width))


def _shrunk(size: Size, by: float) -> Size:
    return round(size[0] / by), round(size[1] / by)
