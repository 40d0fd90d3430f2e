"""What is counted of each channel while the images pass by: histograms, and means by class. Memory stays the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convlens.types import Floats, Ints

_BINS = 32
_FINEST = -24  # bins are 2 to this power wide, or wider


@dataclass
class ChannelHistograms:
    """A histogram of each of ``channels``, whose bins grow with the values: no range need be known beforehand.

    Bin b of channel c holds the values v with ``floor(v / width) == first_C[c] + b``, where the width is 2 to the power
    ``exponent_C[c]``: the smallest one, from 2^-24, by which all values of the channel so far fit into 32 bins.
    """

    # A bin of twice the width is the sum of two, so the result is that of the final width from the beginning.

    channels: int
    exponent_C: Ints = field(init=False)
    first_C: Ints = field(init=False)
    count_CB: Ints = field(init=False)
    low_C: Floats = field(init=False)
    high_C: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.exponent_C = np.full(self.channels, _FINEST, np.int64)
        self.first_C = np.zeros(self.channels, np.int64)
        self.count_CB = np.zeros((self.channels, _BINS), np.int64)
        self.low_C = np.full(self.channels, np.inf)
        self.high_C = np.full(self.channels, -np.inf)

    def add(self, value_NC: Floats) -> None:
        """Count a value of each channel for each row; they are finite."""
        if not len(value_NC):
            return
        value_NC = value_NC.astype(np.float64)
        self.low_C = np.minimum(self.low_C, value_NC.min(axis=0))
        self.high_C = np.maximum(self.high_C, value_NC.max(axis=0))
        self._widen()
        bin_NC = _bins(value_NC, self.exponent_C) - self.first_C
        np.add.at(self.count_CB, (np.arange(self.channels), bin_NC), 1)

    def bars(self, channel: int) -> tuple[float, float, list[int]]:
        """Where the first bin that holds a value begins, how wide bins are, and the counts up to the last such bin."""
        width = float(np.ldexp(1.0, int(self.exponent_C[channel])))
        held = np.flatnonzero(self.count_CB[channel])
        first, last = (int(held[0]), int(held[-1])) if held.size else (0, -1)
        start = (int(self.first_C[channel]) + first) * width
        return start, width, self.count_CB[channel, first : last + 1].tolist()

    def state_dict(self) -> dict[str, Any]:
        """All that the next values depend on, as arrays."""
        return {name: getattr(self, name) for name in _ARRAYS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _ARRAYS:
            setattr(self, name, np.array(state[name]))

    def _widen(self) -> None:
        exponent_C = self.exponent_C.copy()
        while (too_narrow_C := _bins(self.high_C, exponent_C) - _bins(self.low_C, exponent_C) >= _BINS).any():
            exponent_C += too_narrow_C
        first_C = _bins(self.low_C, exponent_C)
        channel_M, bin_M = np.nonzero(self.count_CB)
        shift_M = (exponent_C - self.exponent_C)[channel_M]
        place_M = (self.first_C[channel_M] + bin_M >> shift_M) - first_C[channel_M]
        count_CB = np.zeros_like(self.count_CB)
        np.add.at(count_CB, (channel_M, place_M), self.count_CB[channel_M, bin_M])
        self.exponent_C, self.first_C, self.count_CB = exponent_C, first_C, count_CB


_ARRAYS = ("exponent_C", "first_C", "count_CB", "low_C", "high_C")


def _bins(values: Floats, exponent_C: Ints) -> Ints:
    return np.asarray(np.floor(np.ldexp(values, -exponent_C)), np.int64)


@dataclass
class ClassMeans:
    """The mean activation of each of ``channels`` by class: only classes that occur take memory."""

    channels: int
    images: dict[int, int] = field(default_factory=dict)
    sums: dict[int, Floats] = field(default_factory=dict)

    def add(self, index: int, mean_C: Floats) -> None:
        """Count an image of the class ``index``, with the mean of each channel's map."""
        self.images[index] = self.images.get(index, 0) + 1
        self.sums[index] = self.sums.get(index, np.zeros(self.channels)) + mean_C

    def best(self, channel: int, most: int) -> list[tuple[int, float, int]]:
        """(class, mean, number of images) of the classes with the largest means, largest first; equal ones by index."""
        means = [(index, float(self.sums[index][channel] / count), count) for index, count in self.images.items()]
        return sorted(means, key=lambda each: (-each[1], each[0]))[:most]

    def mean(self, channel: int) -> float:
        """Over all images; NaN where there is none."""
        total = sum(self.images.values())
        return float(sum(sums[channel] for sums in self.sums.values()) / total) if total else float("nan")

    def state_dict(self) -> dict[str, Any]:
        """All that the next images depend on, as arrays."""
        order = list(self.images)
        return {
            "classes": np.array(order, np.int64),
            "images": np.array([self.images[index] for index in order], np.int64),
            "sums": np.array([self.sums[index] for index in order], np.float64).reshape(len(order), self.channels),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        order = [int(index) for index in state["classes"]]
        self.images = dict(zip(order, (int(count) for count in state["images"]), strict=True))
        self.sums = dict(zip(order, np.array(state["sums"]), strict=True))
