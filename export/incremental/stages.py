"""From one cut of the network to the next on crops of one size: which size, and proof for every window that it does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convlens.types import Ints
from export.incremental.cuts import Patch
from export.incremental.intervals import Reach, Span
from export.incremental.network import Network, Step


@dataclass(frozen=True)
class Crop:
    """Along one axis: what a stage computes for each window.

    It reads ``taken`` positions of the map that it begins at, from ``from_R`` on, counted in the map with
    ``before`` + ``after`` zeros around it. ``core`` is the size of what its first layers make of that (see ``Head``),
    ``sizes`` the size of each map up to the last, which begins at position ``to_R`` of the whole one.
    """

    before: int
    after: int
    taken: int
    core: int
    from_R: Ints
    to_R: Ints
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Head:
    """How a stage's first layers read its crop.

    Convolutions in ``bare`` read the halo and lose their padding: the crop has true values all around, zeros outside
    the map included. All others read the core, which is the crop without its halo. Where a convolution is the only
    reader and does not keep the size, its output is the core (``leading``).
    """

    bare: frozenset[str]
    leading: bool


@dataclass(frozen=True)
class Stage:
    """From the cut ``source`` to the cut ``target``: rows first, then columns."""

    source: str
    target: str
    steps: tuple[Step, ...]
    head: Head
    crops: tuple[Crop, Crop]
    taken_up: tuple[Patch, Patch]
    given: tuple[Patch, Patch]


def head_of(network: Network, source: str, steps: Sequence[Step]) -> Head:
    readers = [step for step in steps if source in step.inputs]
    convolutions = [step for step in readers if step.node.op_type == "Conv"]
    if len(readers) == 1 and convolutions and not all(reach.keeps_size for reach in readers[0].reaches):
        return Head(frozenset({readers[0].output}), leading=True)
    bare = [step.output for step in convolutions if all(reach.keeps_size for reach in step.reaches)]
    return Head(frozenset(bare), leading=False)


def stage(
    network: Network, source: str, steps: Sequence[Step], changed: Mapping[str, tuple[Patch, Patch]]
) -> Stage | None:
    """The stage with the smallest crops that are proven to do; None where there is no proof."""
    target, head = steps[-1].output, head_of(network, source, steps)
    lines = [_Line(network, source, tuple(steps), head, axis) for axis in (0, 1)]
    rows = lines[0].smallest(changed[source][0], changed[target][0])
    if rows is None:
        return None
    alike = lines[0].square and all(patches[0] == patches[1] for patches in (changed[source], changed[target]))
    columns = rows if alike else lines[1].smallest(changed[source][1], changed[target][1])
    if columns is None:
        return None
    return Stage(source, target, tuple(steps), head, (rows, columns), changed[source], changed[target])


@dataclass(frozen=True)
class _Made:
    """A map of a crop: its size, where it begins, what of it is right (for every place that the crop may be taken at),
    and how many positions of the core one of it stands for."""

    size: int
    start: Ints
    right: Span
    ratio: int


@dataclass(frozen=True)
class _Line:
    """A stage along one axis."""

    network: Network
    source: str
    steps: tuple[Step, ...]
    head: Head
    axis: int

    @property
    def square(self) -> bool:
        """Whether the other axis is the same."""
        sizes = (self.network.shapes[name][-2:] for name in (self.source, *(step.output for step in self.steps)))
        return all(size[0] == size[1] for size in sizes) and all(len(set(step.reaches)) == 1 for step in self.steps)

    def smallest(self, taken_up: Patch, given: Patch) -> Crop | None:
        made = self._run(1, np.zeros(1, np.int64), sized=False)
        if made is None:
            return None
        # crops must move in steps that are whole steps of every layer
        ratio = math.lcm(*(one.ratio for one in made.values()))
        least = max((given.length - 2) * made[self.steps[-1].output].ratio, 1)
        first = least + (self._side - least) % ratio
        for core in range(first, self._side + 1, ratio):
            crop = self._crop(core, ratio, taken_up, given)
            if crop is not None:
                return crop
        return None

    @property
    def _first(self) -> Reach:
        """The leading convolution, or all that keep the size as one: what lies between the crop and the core."""
        bare = [step.reaches[self.axis] for step in self.steps if step.output in self.head.bare]
        if self.head.leading:
            return bare[0]
        before, after = (max((getattr(reach, side) for reach in bare), default=0) for side in ("before", "after"))
        return Reach(before + after + 1, 1, before, after)

    @property
    def _side(self) -> int:
        """Of the whole core."""
        return self.network.size(self.steps[0].output if self.head.leading else self.source, self.axis)

    def _crop(self, core: int, ratio: int, taken_up: Patch, given: Patch) -> Crop | None:
        """The crop with a core of that size, if there is a place for it for every window."""
        first, length = self._first, self.network.size(self.source, self.axis)
        left_over = (length + first.before + first.after - first.kernel) % first.stride
        taken = (core - 1) * first.stride + first.kernel + left_over
        if taken < taken_up.length:
            return None
        start_O = np.arange(0, self._side - core + 1, ratio)
        made = self._run(core, start_O)
        if made is None:
            return None
        from_O, result = start_O * first.stride, made[self.steps[-1].output]
        holds_RO = _holds(Span(from_O - first.before, from_O - first.before + taken), taken_up.span)
        place_R = np.argmax(possible_RO := holds_RO & _holds(result.right, given.span), axis=1)
        if not possible_RO.any(axis=1).all():
            return None
        sizes = {name: one.size for name, one in made.items()}
        return Crop(first.before, first.after, taken, core, from_O[place_R], result.start[place_R], sizes)

    def _run(self, core: int, start_O: Ints, *, sized: bool = True) -> dict[str, _Made] | None:
        """All maps of crops whose cores begin at ``start_O``; None where a layer's inputs do not lie on each other."""
        whole = _Made(core, start_O, Span(start_O, start_O + core), 1)
        made = {} if self.head.leading else {self.source: whole}
        for step in self.steps:
            if step.output in self.head.bare:
                made[step.output] = whole
                continue
            inputs = [made[name] for name in step.inputs]
            if len({(one.size, one.ratio) for one in inputs}) > 1:
                return None
            made[step.output] = self._next(step, inputs)
            if sized and made[step.output].size < 1:
                return None
        return made

    def _next(self, step: Step, inputs: Sequence[_Made]) -> _Made:
        reach, given = step.reaches[self.axis], inputs[0]
        start, size = given.start // reach.stride, reach.size(given.size)
        right = inputs[0].right
        for one in inputs[1:]:
            right = right.common(one.right)
        side = self.network.size(step.output, self.axis)
        out = Span(start, np.minimum(start + size, side))
        return _Made(
            size,
            start,
            reach.trusted(right, self.network.size(step.inputs[0], self.axis), out),
            given.ratio * reach.stride,
        )


def _holds(outer_O: Span, inner_R: Span) -> np.ndarray:
    """(R, O): whether each inner interval lies in each outer one."""
    after_RO = inner_R.start[:, None] >= outer_O.start
    return np.asarray(after_RO & (inner_R.stop[:, None] <= outer_O.stop))


def stages(
    network: Network, names: Sequence[str], changed: Mapping[str, tuple[Patch, Patch]]
) -> Iterator[tuple[int, int, Stage]]:
    """All stages between two of the cuts ``names`` that recompute less than the whole map."""
    position = {step.output: at + 1 for at, step in enumerate(network.steps)} | {network.entry: 0}
    for i, source in enumerate(names):
        for j in range(i + 1, len(names)):
            steps = network.steps[position[source] : position[names[j]]]
            found = stage(network, source, steps, changed)
            if found is None or _whole(network, found):
                break
            yield i, j, found


def _whole(network: Network, one: Stage) -> bool:
    last = one.steps[-1].output
    return all(one.crops[axis].sizes[last] >= network.size(last, axis) for axis in (0, 1))
