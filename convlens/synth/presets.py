"""Presets of activation maximisation: where an option of the job is None, the preset's value holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from convlens.errors import RequestError, unknown_name
from convlens.synth.base import require_at_least, require_between, require_choice, require_positive


@dataclass(frozen=True)
class Settings:
    """How activation maximisation proceeds.

    ``optimizer`` and ``rate``: "adam" with its step; "gradient", by which the rate multiplies the gradient, on pixels
    from 0 to 255; "normalised", where the rate is the mean change of a pixel in levels of 255, however strong the
    gradient is. ``smoothness`` is the power of the frequency that Fourier coefficients are divided by. ``l2`` is λ of
    −λ‖I‖² and ``tv`` that of −λ R_V2(I), on normalised images.
    ``jitter`` (pixels), ``scale`` (a share) and ``rotate`` (degrees) are random, each either way. ``grain`` is the
    standard deviation of the noise added to each step's images, in normalised units; it falls to 0 over the last share
    ``settle`` of the steps. ``redirect_steps`` is for how many steps gradients pass dead ReLUs.
    ``decay``, ``blur`` (sigma in pixels, every ``blur_every`` steps), ``norm_percentile`` and
    ``contribution_percentile`` are Yosinski's and need ``parameter`` "pixels". ``start_spread`` is the standard
    deviation of a start from noise, in units of the parameterization.
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


def _yosinski(steps: int, levels: float, **options: Any) -> Settings:
    """The values of the authors' toolbox, but for the rate, on pixels and from noise."""
    # The toolbox's rate of 100 is meant for CaffeNet's gradients and leaves the images of other networks grey: so the
    # gradient is normalised, and the rate counts levels of 255.
    return Settings(steps, "normalised", levels, "pixels", decorrelated=False, start_spread=0.04, **options)


PRESETS: Mapping[str, Settings] = MappingProxyType(
    {
        # Olah et al. 2017 and Lucid's defaults (optvis/transform.py, render.py): jitter 8 and 4 in a row.
        "lucid": Settings(
            512, "adam", 0.05, "fourier", jitter=12.0, scale=0.1, rotate=10.0, redirect_steps=16, start_spread=0.01
        ),
        # Ours, chosen by how well an independent network recognises the images (benchmarks/ascent_transfer.py): grain
        # drowns fine patterns, a higher power draws coarse scales first, and the transforms are wider. Lucid's own
        # values left that network's rank of the class between 6 and 649.
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
        # Simonyan et al. 2013 (arXiv:1312.6034): logit - λ‖I‖², from zeros.
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
    """The preset's values, replaced by the overrides that are not None.

    RequestError for an unknown preset, a value out of range, and options that exclude each other.
    """
    if preset not in PRESETS:
        raise RequestError(unknown_name("preset", preset, tuple(PRESETS)), field="preset")
    settings = replace(PRESETS[preset], **{name: value for name, value in overrides.items() if value is not None})
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    require_choice(OPTIMIZERS, settings, "optimizer")
    require_at_least(1, settings, "steps", "blur_every")
    require_positive(settings, "rate")
    require_at_least(
        0, settings, "jitter", "rotate", "grain", "smoothness", "l2", "tv", "blur", "start_spread", "redirect_steps"
    )
    require_between(0, 0.9, settings, "scale")
    require_between(0, 1, settings, "settle", "decay")
    require_between(0, 100, settings, "norm_percentile", "contribution_percentile")
    if settings.parameter == "pixels":
        return
    if settings.optimizer == "normalised":
        raise RequestError("optimizer=normalised moves pixels by levels; use parameter=pixels", field="optimizer")
    for name in ("decay", "blur", "norm_percentile", "contribution_percentile"):
        if getattr(settings, name):
            raise RequestError(f"{name} works on pixels; use parameter=pixels, or a yosinski preset", field=name)
