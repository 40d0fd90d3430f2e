"""Numbers, methods and costs in words: ``.46 ± .03``, ``Grad-CAM``, ``at a fortieth of the cost``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from convlens.explain.registry import available_methods, get

_BASELINES = {"centre": "a blob in the centre", "edges": "the image's edges"}
_FRACTIONS = {
    1.5: "two thirds",
    2: "half",
    3: "a third",
    4: "a quarter",
    5: "a fifth",
    6: "a sixth",
    7: "a seventh",
    8: "an eighth",
    9: "a ninth",
    10: "a tenth",
    15: "a fifteenth",
    20: "a twentieth",
    30: "a thirtieth",
    40: "a fortieth",
    50: "a fiftieth",
    70: "a seventieth",
    100: "a hundredth",
    200: "a two-hundredth",
    500: "a five-hundredth",
    1000: "a thousandth",
}
_MULTIPLES = {
    1.5: "one and a half times",
    2: "twice",
    3: "three times",
    4: "four times",
    5: "five times",
    6: "six times",
    7: "seven times",
    8: "eight times",
    9: "nine times",
    10: "ten times",
}


def number(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """``.46``, ``−1.20``, ``+.02``: no zero before the point, a true minus sign, no sign before what rounds to 0."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        sign = ""
    else:
        sign = "−" if value < 0 else "+" if signed else ""
    return sign + (text[1:] if text.startswith("0.") else text)


def plus_minus(value: float, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """Value ± half the width of its interval; the value alone where it has none.

    Two digits after the point, more where the half width would round to 0.
    """
    if low is None or high is None:
        return number(value, signed=signed)
    half = (high - low) / 2
    digits = min(6, max(2, -math.floor(math.log10(half)))) if half > 0 else 2
    return f"{number(value, digits, signed=signed)} ± {number(half, digits)}"


def estimate(values: Mapping[str, Any]) -> str:
    """``plus_minus`` of a mean of the summary."""
    return plus_minus(values["mean"], values["low"], values["high"])


def difference(values: Mapping[str, Any]) -> str:
    """``plus_minus`` of a difference of the summary, with its sign; one that may be 0 is said to show nothing."""
    text = plus_minus(values["difference"], values["low"], values["high"], signed=True)
    return text if is_shown(values) else f"{text}: no difference shown"


def is_shown(values: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference leaves out 0."""
    return values["low"] is not None and not values["low"] <= 0 <= values["high"]


def seconds(value: float) -> str:
    """``.031 s``, ``1.2 s``, ``48 s``."""
    return f"{number(value, max(0, 1 - math.floor(math.log10(value))) if value > 0 else 0)} s"


def cost(of: float, reference: float, whose: str = "the") -> str:
    """``at a fortieth of the cost``, ``at twice occlusion's cost``; '' where a time is 0, which is not measured."""
    if of <= 0 or reference <= 0:
        return ""
    times = of / reference
    if 0.8 <= times <= 1.25:
        return "at about the same cost" if whose == "the" else f"at about {whose} cost"
    if times < 1:
        share = f"{_FRACTIONS[_nearest(1 / times, _FRACTIONS)]} of"
    elif times > 10.5:
        share = f"{_round_times(times)} times"
    else:
        share = _MULTIPLES[_nearest(times, _MULTIPLES)]
    return f"at {share} {whose} cost"


def method_name(name: str) -> str:
    """A method's or a baseline's name inside a sentence: ``guided backprop``, ``a blob in the centre``."""
    if name not in available_methods():
        return _BASELINES.get(name, name.replace("_", " "))
    title = get(name).title
    first = title.split(maxsplit=1)[0]
    return title[0].lower() + title[1:] if first[1:].islower() else title


def verb(name: str, singular: str, plural: str) -> str:
    """The form that agrees with the method's name; those of ``integrated gradients`` are plural."""
    return plural if method_name(name).endswith("gradients") else singular


def listing(names: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def capitalised(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


def _nearest(ratio: float, known: Mapping[float, str]) -> float:
    return min(known, key=lambda each: abs(math.log(each / ratio)))


def _round_times(times: float) -> int:
    """To one digit, or two below 20."""
    step = float(10 ** math.floor(math.log10(times))) / (2 if times < 20 else 1)
    return int(round(times / step) * step)
