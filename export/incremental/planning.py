"""The cheapest way through a network's cuts, by dynamic programming over what each stage is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass

from convlens.explain.windows import Windows
from export.incremental.cost import Costs, free
from export.incremental.cuts import cuts, patches
from export.incremental.reading import Network
from export.incremental.stages import Stage, stages

# Less is not worth a graph that is harder to read; and the expectation may be wrong by a few hundredths.
WORTH = 1.05


@dataclass(frozen=True)
class Plan:
    """Stages from the picture on; behind the last the network runs whole. ``speed_up`` is what is expected of it."""

    stages: tuple[Stage, ...]
    speed_up: float


def planned(network: Network, windows: Windows) -> Plan:
    """The cheapest plan that is proven to be exact; one without stages where no crop is smaller than its map."""
    names, costs = _candidates(network), Costs(network)
    cheapest: dict[int, tuple[float, tuple[Stage, ...]]] = {0: (0.0, ())}
    for i, j, one in stages(network, names, patches(network, windows)):
        if i not in cheapest:
            continue
        before, path = cheapest[i]
        cost = before + costs.stage(one)
        if j not in cheapest or cost < cheapest[j][0]:
            cheapest[j] = (cost, (*path, one))
    whole = costs.whole()
    found = [Plan(path, whole / (cost + costs.rest(names[i]))) for i, (cost, path) in cheapest.items() if i > 0]
    return max(found, key=lambda plan: plan.speed_up, default=Plan((), 1.0))


def _candidates(network: Network) -> list[str]:
    """The cuts, without those before an activation that comes free: it is cheaper to keep what follows it."""
    readers: dict[str, list[bool]] = {}
    for step in network.steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(free(step.node))
    return [name for name in cuts(network) if name == network.entry or readers.get(name) != [True]]
