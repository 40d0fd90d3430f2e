"""Where a network can be cut, and what each window can change of its maps, by interval propagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convlens.explain.sweeps.windows import Windows
from convlens.types import Ints
from export.incremental.intervals import Span
from export.incremental.network import Network


@dataclass(frozen=True, eq=False)
class Patch:
    """Along one axis: the part of a map that each window may change, ``length`` positions from ``start_R`` on.

    ``start_R`` is the same for whoever computes the patch and whoever takes it up: the first changed position, or less
    where the patch would end outside the map.
    """

    start_R: Ints
    length: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patch) and self.length == other.length and np.array_equal(self.start_R, other.start_R)

    @property
    def span(self) -> Span:
        return Span(self.start_R, self.start_R + self.length)


def cuts(network: Network) -> list[str]:
    """Maps through which everything behind them depends on the picture, from the picture on."""
    nodes = [step.node for step in network.steps] + list(network.rest)
    last_use = {name: at for at, node in enumerate(nodes) for name in node.input}
    made = [network.entry, *(step.output for step in network.steps)]
    found, reach = [], -1
    for at, name in enumerate(made):
        # all earlier maps were read for the last time by the node that makes this one, if not before
        alone = name in last_use and reach < at
        if alone and len(network.shapes[name]) == 4:
            found.append(name)
        reach = max(reach, last_use.get(name, -1))
    return found


def patches(network: Network, windows: Windows) -> dict[str, tuple[Patch, Patch]]:
    """What the windows change of every map, by interval propagation from the picture on."""
    rows, columns = (_patches(network, windows, axis) for axis in (0, 1))
    return {name: (rows[name], columns[name]) for name in rows}


def _patches(network: Network, windows: Windows, axis: int) -> dict[str, Patch]:
    return {
        name: _patch(span, network.size(name, axis)) for name, span in changed_spans(network, windows, axis).items()
    }


def changed_spans(network: Network, windows: Windows, axis: int) -> dict[str, Span]:
    """Along one axis, what each window can change of every map."""
    start_R = (windows.tops, windows.lefts)[axis]
    side = network.size(network.entry, axis)
    spans = {network.entry: Span(start_R, np.minimum(start_R + windows.window, side))}
    for step in network.steps:
        outputs = network.size(step.output, axis)
        each = [step.reaches[axis].changed(spans[name], outputs) for name in step.inputs]
        spans[step.output] = _hull(each)
    return spans


def _hull(spans: Sequence[Span]) -> Span:
    found = spans[0]
    for span in spans[1:]:
        found = found.joined(span)
    return found


def _patch(span: Span, side: int) -> Patch:
    length = max(span.longest, 1)
    return Patch(np.minimum(span.start, side - length), length)
