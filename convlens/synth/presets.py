"""Sets of values for ascent, by name: where an option of the job is None, the preset's value holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from convlens.errors import RequestError, near_matches


@dataclass(frozen=True)
class Settings:
    """How ascent goes.

    ``rate`` is Adam's step; of ``optimizer`` "gradient" what the gradient is multiplied with, on pixels from 0 to 255;
    of "normalised" by how many of those levels the gradient moves a pixel on average, however strong it is.
    ``smoothness`` is the power of the frequency that Fourier coefficients are divided by. ``l2`` is λ of −λ‖I‖² and
    ``tv`` that of −λ R_V2(I), on normalised pictures. ``jitter`` is in pixels, ``scale`` a share, ``rotate`` in
    degrees: each either way. ``grain`` is the standard deviation of noise that each step's pictures get, in normalised
    units; over the last ``settle`` of the steps it falls to 0. ``decay``, ``blur`` (sigma in pixels, every
    ``blur_every`` steps), ``norm_percentile`` and ``contribution_percentile`` are Yosinski's and need ``parameter``
    "pixels". ``redirect_steps``: for so many steps gradients pass dead ReLUs. ``start_spread`` is the standard
    deviation of a start from noise, in units of the parameter.
    """

    steps: int
    optimizer: str
    rate: float
    parameter: str
    decorrelated: bool = True
    start: str = "noise"
    start_spread: float = 0.01
    jitter: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0
    grain: float = 0.0
    settle: float = 0.0
    smoothness: float = 1.0
    l2: float = 0.0
    tv: float = 0.0
    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 1
    norm_percentile: float = 0.0
    contribution_percentile: float = 0.0
    redirect_steps: int = 0


def _yosinski(steps: int, levels: float, **more: Any) -> Settings:
    """Pixels from 0 to 255 about the mean, gradient ascent from noise; the values of the authors' toolbox, but for the
    rate: its 100 is meant for CaffeNet's gradients, and leaves the pictures of other networks grey.
    """
    return Settings(steps, "normalised", levels, "pixels", decorrelated=False, start_spread=0.04, **more)


PRESETS: Mapping[str, Settings] = MappingProxyType(
    {
        # Olah et al. 2017 and Lucid's defaults (optvis/transform.py, render.py): jitter 8 and 4 in a row.
        "lucid": Settings(
            512, "adam", 0.05, "fourier", jitter=12.0, scale=0.1, rotate=10.0, redirect_steps=16, start_spread=0.01
        ),
        # Found here, by what an independent network makes of the pictures (benchmarks/ascent_transfer.py): grain that
        # drowns fine patterns, coarse scales first, and wider movements.
        "robust": Settings(
            512,
            "adam",
            0.04,
            "fourier",
            jitter=24.0,
            scale=0.5,
            rotate=12.0,
            grain=0.25,
            settle=0.15,
            smoothness=1.35,
            redirect_steps=16,
        ),
        # Simonyan et al. 2013: logit - λ‖I‖², from zeros.
        "simonyan": Settings(512, "adam", 0.05, "pixels", start="zeros", l2=1e-4, decorrelated=False),
        # Yosinski et al. 2015, the four of their figure 4 (github.com/yosinski/deep-visualization-toolbox).
        "yosinski1": _yosinski(500, 3.0, blur=0.5, blur_every=4, norm_percentile=50.0),
        "yosinski2": _yosinski(750, 1.0, decay=0.3, norm_percentile=20.0),
        "yosinski3": _yosinski(1000, 3.0, decay=1e-4, blur=1.0, blur_every=4),
        "yosinski4": _yosinski(1000, 0.3, blur=0.5, blur_every=4, contribution_percentile=90.0),
    }
)
OPTIMIZERS = ("adam", "gradient", "normalised")
OVERRIDABLE = tuple(field.name for field in fields(Settings))


def settings_of(preset: str, overrides: Mapping[str, Any]) -> Settings:
    """The preset's values but for those given. RequestError for an unknown preset and for what goes not together."""
    if preset not in PRESETS:
        raise RequestError(
            f"no preset {preset!r}{near_matches(preset, PRESETS)}; there are: {', '.join(PRESETS)}", field="preset"
        )
    found = replace(PRESETS[preset], **{name: value for name, value in overrides.items() if value is not None})
    _check(found)
    return found


def _check(given: Settings) -> None:
    if given.optimizer not in OPTIMIZERS:
        raise RequestError(f"no optimizer {given.optimizer!r}; there are: {', '.join(OPTIMIZERS)}", field="optimizer")
    for name in ("steps", "blur_every"):
        if getattr(given, name) < 1:
            raise RequestError(f"{name} should be 1 or more, not {getattr(given, name)}", field=name)
    if not given.rate > 0:
        raise RequestError(f"rate should be above 0, not {given.rate}", field="rate")
    for name in ("jitter", "rotate", "grain", "smoothness", "l2", "tv", "blur", "start_spread", "redirect_steps"):
        if not getattr(given, name) >= 0:
            raise RequestError(f"{name} should be 0 or more, not {getattr(given, name)}", field=name)
    for name, end in (
        ("scale", 0.9),
        ("settle", 1.0),
        ("decay", 1.0),
        ("norm_percentile", 100.0),
        ("contribution_percentile", 100.0),
    ):
        if not 0 <= getattr(given, name) <= end:
            raise RequestError(f"{name} should be from 0 to {end:g}, not {getattr(given, name)}", field=name)
    if given.optimizer == "normalised" and given.parameter != "pixels":
        raise RequestError("optimizer=normalised moves pixels by levels; use parameter=pixels", field="optimizer")
    after = [name for name in ("decay", "blur", "norm_percentile", "contribution_percentile") if getattr(given, name)]
    if after and given.parameter != "pixels":
        raise RequestError(f"{after[0]} works on pixels; use parameter=pixels, or a yosinski preset", field=after[0])
