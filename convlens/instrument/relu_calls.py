"""Which torch calls are ReLUs: every spelling that clips its input at zero from below."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ReluCall:
    """``upper`` is where the unit saturates: 6 for ReLU6, None for none.

    ``output_stays`` where torch itself keeps the output for the backward pass, so that no network may overwrite it;
    after the other spellings a network may, and the input must be kept instead.
    """

    input: Tensor
    upper: float | None
    in_place: bool
    output_stays: bool


def as_relu(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ReluCall | None:
    """What this call of a torch function clips, if it is a ReLU; None for any other call."""
    spelling = _SPELLINGS.get(func)
    if spelling is None:
        return None
    given = dict(zip(spelling.arguments, args, strict=False)) | dict(kwargs)
    given["input"] = given.pop("self", given.get("input"))
    low, high = spelling.bounds(given)
    if isinstance(low, Tensor) or isinstance(high, Tensor) or low is None or low != 0 or given.get("out") is not None:
        return None
    in_place = spelling.in_place or bool(given.get("inplace"))
    return ReluCall(given["input"], None if high is None else float(high), in_place, in_place in spelling.output_stays)


Bounds = Callable[[Mapping[str, Any]], tuple[Any, Any]]


@dataclass(frozen=True)
class _Spelling:
    arguments: tuple[str, ...]
    bounds: Bounds
    in_place: bool
    output_stays: tuple[bool, ...]  # for which values of in_place


def _threshold(given: Mapping[str, Any]) -> tuple[Any, Any]:
    is_relu = given.get("threshold") == 0 and given.get("value") == 0
    return (0 if is_relu else None), None


def _between(low: str, high: str, *defaults: float | None) -> Bounds:
    return lambda given: (given.get(low, defaults[0]), given.get(high, defaults[1]))


# Argument names in positional order, the bounds they set, where torch keeps the output (torch's derivatives.yaml:
# "result"), and the names under which torch offers the call.
_ALWAYS, _IN_PLACE, _NEVER = (False, True), (True,), ()
_TABLE: tuple[tuple[str, Bounds, tuple[bool, ...], str], ...] = (
    ("input inplace", lambda _: (0, None), _ALWAYS, "relu"),
    ("input inplace", lambda _: (0, 6), _IN_PLACE, "relu6"),
    ("input min_val max_val inplace", _between("min_val", "max_val", -1, 1), _IN_PLACE, "hardtanh"),
    ("input min max", _between("min", "max", None, None), _NEVER, "clamp"),
    ("input min max", _between("min", "max", None, None), _NEVER, "clip"),
    ("input min", _between("min", "max", None, None), _NEVER, "clamp_min"),
    ("input threshold value inplace", _threshold, _IN_PLACE, "threshold"),
)


def _entries() -> Iterator[tuple[Callable[..., Any], _Spelling]]:
    for arguments, bounds, output_stays, name in _TABLE:
        for home in (functional, torch, Tensor):
            for spelled in (name, f"{name}_"):
                if hasattr(home, spelled):
                    in_place = spelled.endswith("_")
                    yield getattr(home, spelled), _Spelling(tuple(arguments.split()), bounds, in_place, output_stays)


_SPELLINGS: dict[Callable[..., Any], _Spelling] = dict(_entries())
