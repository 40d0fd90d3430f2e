"""Interval arithmetic of a layer along one axis: what an output reads, a change reaches, and a crop gets right.

Intervals are half open, [start, stop), in positions of the whole map; arrays of them, one for each window or crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convlens.types import Ints


@dataclass(frozen=True)
class Span:
    """Intervals [start, stop), one for each window or crop."""

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
        """The intersections."""
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
        """The outputs that read a position of ``span``, in a map of ``outputs`` positions."""
        first = -(-(span.start + self.before - self.kernel + 1) // self.stride)
        last = (span.stop - 1 + self.before) // self.stride
        start = np.clip(first, 0, outputs)
        stop = np.where(span.start < span.stop, np.clip(last + 1, start, outputs), start)
        return Span(start, stop)

    def trusted(self, span: Span, length: int, outputs: Span) -> Span:
        """Of ``outputs``, computed from a crop, those that read only right values and the map's own padding.

        ``span`` is what is right of the crop's inputs, ``length`` the size of the whole map. A layer pads a crop with
        zeros at its borders, which is right only where they are the borders of the map.
        """
        first = np.where(span.start <= 0, outputs.start, -(-(span.start + self.before) // self.stride))
        last = np.where(span.stop >= length, outputs.stop - 1, (span.stop - self.kernel + self.before) // self.stride)
        start = np.maximum(outputs.start, first)
        stop = np.maximum(start, np.minimum(outputs.stop, last + 1))
        empty = span.start >= span.stop
        return Span(start, np.where(empty, start, stop))


POINT = Reach()
