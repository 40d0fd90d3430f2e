"""Where a network can be cut, and what each window can change of its maps, by interval propagation."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from convlens.explain.sweeps.windows import Windows
from convlens.types import Ints
from export.incremental.intervals import Span
from export.incremental.network import Network


@dataclass(frozen=True, eq=False)
class Patch:
    """The part of a map that each window may change, along one axis: ``length`` positions from ``start_R`` on.

    All windows' patches have one length, so that they batch. A patch begins at the first changed position, or before
    it where it would end outside the map; the stage that computes it and the next, which takes it, agree on that.
    """

    start_R: Ints
    length: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patch) and self.length == other.length and np.array_equal(self.start_R, other.start_R)

    @property
    def span(self) -> Span:
        return Span(self.start_R, self.start_R + self.length)


def find_cuts(network: Network) -> list[str]:
    """Maps in order from the image on, such that everything after one depends on the image through that map alone."""
    nodes = [step.node for step in network.steps] + list(network.rest)
    last_use = {name: at for at, node in enumerate(nodes) for name in node.input}
    maps = [network.entry, *(step.output for step in network.steps)]
    result, latest_use = [], -1
    for at, name in enumerate(maps):
        # no earlier map is read after the node that computes this one
        alone = name in last_use and latest_use < at
        if alone and len(network.shapes[name]) == 4:
            result.append(name)
        latest_use = max(latest_use, last_use.get(name, -1))
    return result


def changed_patches(network: Network, windows: Windows) -> dict[str, tuple[Patch, Patch]]:
    """The patches (rows, columns) of every map, by interval propagation from the image on."""
    rows, columns = (_patches(network, windows, axis) for axis in (0, 1))
    return {name: (rows[name], columns[name]) for name in rows}


def _patches(network: Network, windows: Windows, axis: int) -> dict[str, Patch]:
    return {
        name: _patch(span, network.size(name, axis)) for name, span in changed_spans(network, windows, axis).items()
    }


def changed_spans(network: Network, windows: Windows, axis: int) -> dict[str, Span]:
    """What each window can change of every map, along one axis."""
    start_R = (windows.tops, windows.lefts)[axis]
    side = network.size(network.entry, axis)
    spans = {network.entry: Span(start_R, np.minimum(start_R + windows.window, side))}
    for step in network.steps:
        outputs = network.size(step.output, axis)
        changed = [step.reaches[axis].changed(spans[name], outputs) for name in step.inputs]
        spans[step.output] = functools.reduce(Span.joined, changed)
    return spans


def _patch(span: Span, side: int) -> Patch:
    length = max(span.longest, 1)
    return Patch(np.minimum(span.start, side - length), length)
