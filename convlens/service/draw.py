"""An attribution as pictures: laid over what the model saw, and alone."""

from __future__ import annotations

import numpy as np

from convlens import colour, explain
from convlens.types import Attribution, Bytes8, Floats, Placement


def overlay(attribution: Attribution, view_HWC: Bytes8) -> Bytes8:
    """One attribution (of one row) over the picture it explains; (H, W, 3)."""
    signed = _drawing(attribution) == "signed"
    return colour.overlay(view_HWC, pixel_map(attribution), signed=signed, smooth=_smooth(attribution))


def overlay_at_place(attribution: Attribution, picture_HWC: Bytes8, placement: Placement) -> Bytes8:
    """One attribution over the whole picture, of which the model saw a part; (H, W, 3) of the picture."""
    smooth_HW = colour.smoothed(pixel_map(attribution), sigma=_smooth(attribution))
    placed_HW = colour.placed(smooth_HW[None], size=placement.size, box=placement.box)[0]
    return colour.overlay(picture_HWC, placed_HW, signed=_drawing(attribution) == "signed")


def heatmap(attribution: Attribution) -> Bytes8:
    """One attribution (of one row) alone, in the colours of its kind; (H, W, 3)."""
    drawing = _drawing(attribution)
    if drawing == "picture":
        return colour.gradient_picture(attribution.values_NCHW[0])
    map_HW = pixel_map(attribution)
    return colour.diverging(map_HW) if drawing == "signed" else colour.sequential(map_HW)


def pixel_map(attribution: Attribution) -> Floats:
    """(H, W): summed over channels where signs mean for and against, else the largest magnitude."""
    values_CHW = attribution.values_NCHW[0]
    if _drawing(attribution) == "signed":
        return np.asarray(colour.signed_sum(values_CHW))
    return np.asarray(colour.abs_max(values_CHW))


def reduced(attribution: Attribution, how: str) -> Floats:
    """The values as a reply carries them: (C, H, W) as they are, or (1, H, W) by abs_max or sum."""
    values_CHW: Floats = np.asarray(attribution.values_NCHW[0])
    if how == "none":
        return values_CHW
    map_HW = colour.abs_max(values_CHW) if how == "abs_max" else colour.signed_sum(values_CHW)
    return np.asarray(map_HW)[None]


def _smooth(attribution: Attribution) -> float:
    """Gradients per channel are a scatter of single pixels, hard to see on a photograph unless slightly spread."""
    return 2.0 if attribution.values_NCHW.shape[1] > 1 else 0.0


def _drawing(attribution: Attribution) -> str:
    return explain.get(attribution.method).drawing
