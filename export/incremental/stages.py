"""Stages: from one cut of the network to the next on crops of one size, which is proven right for every window."""

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
    """What a stage computes for each window, along one axis.

    It reads ``taken`` positions of its source from ``from_R`` on, counted in the map padded by ``before`` and ``after``
    zeros. ``core`` is the size of what its first layers make of that (see ``Head``), ``sizes`` the size of each map up
    to the last, which begins at position ``to_R`` of the whole map.
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

    Convolutions in ``bare`` read the halo and have their padding removed: the crop holds the true values all around it,
    including the zeros outside the map. All others read the core, which is the crop without its halo. Where the only
    reader is a convolution that changes the size, its output is the core (``leading``).
    """

    bare: frozenset[str]
    leading: bool


@dataclass(frozen=True)
class Stage:
    """From the cut ``source`` to the cut ``target``; of each pair the first is for rows, the second for columns.

    ``input_patches`` are the source's patches, which the stage pastes into its crops, ``output_patches`` the target's.
    """

    source: str
    target: str
    steps: tuple[Step, ...]
    head: Head
    crops: tuple[Crop, Crop]
    input_patches: tuple[Patch, Patch]
    output_patches: tuple[Patch, Patch]


def _head_of(network: Network, source: str, steps: Sequence[Step]) -> Head:
    readers = [step for step in steps if source in step.inputs]
    convolutions = [step for step in readers if step.node.op_type == "Conv"]
    if len(readers) == 1 and convolutions and not all(reach.keeps_size for reach in readers[0].reaches):
        return Head(frozenset({readers[0].output}), leading=True)
    bare = [step.output for step in convolutions if all(reach.keeps_size for reach in step.reaches)]
    return Head(frozenset(bare), leading=False)


def smallest_stage(
    network: Network, source: str, steps: Sequence[Step], changed: Mapping[str, tuple[Patch, Patch]]
) -> Stage | None:
    """The stage with the smallest crops that are proven right; None where none is."""
    target, head = steps[-1].output, _head_of(network, source, steps)
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
class _Map:
    """A map computed from a crop.

    ``start`` and ``right`` (the part that equals the whole map) are for every place where the crop may be taken;
    ``ratio`` is how many positions of the core one position of the map stands for.
    """

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
        """Whether rows and columns are alike."""
        sizes = (self.network.shapes[name][-2:] for name in (self.source, *(step.output for step in self.steps)))
        return all(size[0] == size[1] for size in sizes) and all(len(set(step.reaches)) == 1 for step in self.steps)

    def smallest(self, input_patch: Patch, output_patch: Patch) -> Crop | None:
        """The smallest crop that holds the one patch and gets the other right, for every window."""
        maps = self._run(1, np.zeros(1, np.int64), sized=False)
        if maps is None:
            return None
        # crops must move by whole strides of every layer
        ratio = math.lcm(*(part.ratio for part in maps.values()))
        least = max((output_patch.length - 2) * maps[self.steps[-1].output].ratio, 1)
        first = least + (self._side - least) % ratio
        for core in range(first, self._side + 1, ratio):
            crop = self._crop(core, ratio, input_patch, output_patch)
            if crop is not None:
                return crop
        return None

    @property
    def _first(self) -> Reach:
        """What lies between crop and core: the leading convolution, or the halo of all bare ones as one kernel."""
        bare = [step.reaches[self.axis] for step in self.steps if step.output in self.head.bare]
        if self.head.leading:
            return bare[0]
        before, after = (max((getattr(reach, side) for reach in bare), default=0) for side in ("before", "after"))
        return Reach(before + after + 1, 1, before, after)

    @property
    def _side(self) -> int:
        """The size of the core of the whole map."""
        return self.network.size(self.steps[0].output if self.head.leading else self.source, self.axis)

    def _crop(self, core: int, ratio: int, input_patch: Patch, output_patch: Patch) -> Crop | None:
        """The crop with a core of that size, where every window has a place for it."""
        first, length = self._first, self.network.size(self.source, self.axis)
        left_over = (length + first.before + first.after - first.kernel) % first.stride
        taken = (core - 1) * first.stride + first.kernel + left_over
        if taken < input_patch.length:
            return None
        start_O = np.arange(0, self._side - core + 1, ratio)
        maps = self._run(core, start_O)
        if maps is None:
            return None
        from_O, result = start_O * first.stride, maps[self.steps[-1].output]
        holds_RO = _holds(Span(from_O - first.before, from_O - first.before + taken), input_patch.span)
        place_R = np.argmax(possible_RO := holds_RO & _holds(result.right, output_patch.span), axis=1)
        if not possible_RO.any(axis=1).all():
            return None
        sizes = {name: part.size for name, part in maps.items()}
        return Crop(first.before, first.after, taken, core, from_O[place_R], result.start[place_R], sizes)

    def _run(self, core: int, start_O: Ints, *, sized: bool = True) -> dict[str, _Map] | None:
        """All maps of crops whose cores begin at ``start_O``; None where a layer's inputs are not aligned."""
        whole = _Map(core, start_O, Span(start_O, start_O + core), 1)
        maps = {} if self.head.leading else {self.source: whole}
        for step in self.steps:
            if step.output in self.head.bare:
                maps[step.output] = whole
                continue
            inputs = [maps[name] for name in step.inputs]
            if len({(part.size, part.ratio) for part in inputs}) > 1:
                return None
            maps[step.output] = self._next(step, inputs)
            if sized and maps[step.output].size < 1:
                return None
        return maps

    def _next(self, step: Step, inputs: Sequence[_Map]) -> _Map:
        reach, first = step.reaches[self.axis], inputs[0]
        start, size = first.start // reach.stride, reach.size(first.size)
        right = inputs[0].right
        for part in inputs[1:]:
            right = right.common(part.right)
        side = self.network.size(step.output, self.axis)
        out = Span(start, np.minimum(start + size, side))
        return _Map(
            size,
            start,
            reach.trusted(right, self.network.size(step.inputs[0], self.axis), out),
            first.ratio * reach.stride,
        )


def _holds(outer_O: Span, inner_R: Span) -> np.ndarray:
    """(R, O): whether each inner interval lies in each outer one."""
    after_RO = inner_R.start[:, None] >= outer_O.start
    return np.asarray(after_RO & (inner_R.stop[:, None] <= outer_O.stop))


def possible_stages(
    network: Network, names: Sequence[str], changed: Mapping[str, tuple[Patch, Patch]]
) -> Iterator[tuple[int, int, Stage]]:
    """All stages between two of the cuts ``names`` that recompute less than the whole map."""
    position = {step.output: at + 1 for at, step in enumerate(network.steps)} | {network.entry: 0}
    for i, source in enumerate(names):
        for j in range(i + 1, len(names)):
            steps = network.steps[position[source] : position[names[j]]]
            stage = smallest_stage(network, source, steps, changed)
            # what fails up to this cut fails up to every later one
            if stage is None or _is_whole(network, stage):
                break
            yield i, j, stage


def _is_whole(network: Network, stage: Stage) -> bool:
    last = stage.steps[-1].output
    return all(stage.crops[axis].sizes[last] >= network.size(last, axis) for axis in (0, 1))
