"""Interval arithmetic of one layer along one axis: what an output reads, what a change touches, what a crop gets right.

Intervals are half open, [start, stop), in positions of the whole map; arrays of them, one for each window or crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convlens.types import Ints


@dataclass(frozen=True)
class Span:
    """Intervals [start, stop), side by side."""

    start: Ints
    stop: Ints

    @property
    def longest(self) -> int:
        return int((self.stop - self.start).max())

    def joined(self, other: Span) -> Span:
        """The hulls: the shortest intervals that hold both. An empty one adds nothing."""
        empty, other_empty = self.start >= self.stop, other.start >= other.stop
        start = np.where(empty, other.start, np.where(other_empty, self.start, np.minimum(self.start, other.start)))
        stop = np.where(empty, other.stop, np.where(other_empty, self.stop, np.maximum(self.stop, other.stop)))
        return Span(start, stop)

    def common(self, other: Span) -> Span:
        start = np.maximum(self.start, other.start)
        return Span(start, np.maximum(start, np.minimum(self.stop, other.stop)))


@dataclass(frozen=True)
class Reach:
    """Output y reads inputs y·stride − before … y·stride − before + kernel − 1; those outside the map are padding.

    ``kernel`` counts from the first to the last position read, so a dilated one is long; positions between its taps
    count as read. ``ceil`` lets the last output reach beyond the padding.
    """

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    ceil: bool = False

    @property
    def keeps_size(self) -> bool:
        return self.stride == 1 and self.before + self.after == self.kernel - 1

    def size(self, length: int) -> int:
        """How many outputs a map of that length has; 0 where the kernel does not fit."""
        room = length + self.before + self.after - self.kernel
        if room < 0:
            return 0
        if not self.ceil:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        # an output that would begin in the padding at the end is left out
        return count - 1 if (count - 1) * self.stride >= length + self.before else count

    def changed(self, span: Span, outputs: int) -> Span:
        """The outputs that read a position of ``span``, of a map with so many outputs."""
        first = -(-(span.start + self.before - self.kernel + 1) // self.stride)
        last = (span.stop - 1 + self.before) // self.stride
        start = np.clip(first, 0, outputs)
        stop = np.where(span.start < span.stop, np.clip(last + 1, start, outputs), start)
        return Span(start, stop)

    def trusted(self, span: Span, length: int, made: Span) -> Span:
        """Of the outputs ``made`` from a crop, those that read nothing but right values and the map's own padding.

        ``span`` are the right ones among the crop's inputs, ``length`` is the whole map's. What a crop lacks it takes
        for padding: that is right at the map's edges only.
        """
        first = np.where(span.start <= 0, made.start, -(-(span.start + self.before) // self.stride))
        last = np.where(span.stop >= length, made.stop - 1, (span.stop - self.kernel + self.before) // self.stride)
        start = np.maximum(made.start, first)
        stop = np.maximum(start, np.minimum(made.stop, last + 1))
        empty = span.start >= span.stop
        return Span(start, np.where(empty, start, stop))


POINT = Reach()
