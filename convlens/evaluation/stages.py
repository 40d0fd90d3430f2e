"""The parts of a network in the order in which they run, the last first: what is randomised one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convlens.errors import RequestError, UnsupportedModelError
from convlens.instrument import in_format_of, private_tree
from convlens.models import Classifier

FEWEST = 3
"""A classifier, a first convolution, and what lies between them."""


@dataclass(frozen=True)
class Stage:
    """Parts of a network that run one behind the other.

    ``modules`` are dotted names of modules, the last to run first; a name of a parameter stands for one that a module
    of several parts holds itself. ``parameters`` are the names of all that belong to them and are used.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def stages(classifier: Classifier, most: int = 8) -> tuple[Stage, ...]:
    """The network from its head down to its first convolution, in at most so many stages.

    Parts are the network's own children; one that holds more than half of all weights is opened, so that those of
    ``features`` or ``blocks`` come out. Normalisation belongs to the part before it, and what runs before the first
    convolution belongs to that. Parts that hold the fewest weights are joined with a neighbour until ``most`` are left,
    head and first convolution excepted. Parts that do not run, such as auxiliary heads, are left out.

    The order is found by running one image of noise. RequestError for ``most`` below 3; UnsupportedModelError for a
    network without weights, and for one that is scripted as a whole, which does not show its parts.
    """
    if most < FEWEST:
        raise RequestError(f"most={most} leaves no room between head and first convolution; use {FEWEST} or more")
    used = _Use(classifier)
    if not used.last:
        raise UnsupportedModelError(
            "none of the parameters that this network holds is used, so there is nothing to randomise"
        )
    if not used.opened(_part(used, "")):
        raise UnsupportedModelError("this network is scripted as a whole and does not show its parts")
    parts = sorted(_parts(used, classifier.spec.first_convolution), key=used.when, reverse=True)
    parts = _with_normalisation(parts, used)
    first = _first(parts, used, classifier.spec.first_convolution)
    top, middle, bottom = parts[:1], parts[1:first], parts[max(first, 1) :]
    joined = [*top, *_merged(middle, used, most - 2), *([_Part.join(bottom)] if bottom else [])]
    return tuple(Stage(part.name, part.modules, part.parameters) for part in joined)


@dataclass(frozen=True)
class _Part:
    """Modules, or parameters by themselves. ``ends`` are the names of its last and its first one."""

    ends: tuple[str, str]
    modules: tuple[str, ...]
    parameters: tuple[str, ...]

    @property
    def name(self) -> str:
        last, first = self.ends
        return last if last == first else f"{last} to {first}"

    @staticmethod
    def join(parts: Sequence[_Part]) -> _Part:
        """One of several that run one behind the other, the last of them first."""
        return _Part(
            (parts[0].ends[0], parts[-1].ends[1]),
            tuple(name for part in parts for name in part.modules),
            tuple(name for part in parts for name in part.parameters),
        )

    def named(self, name: str) -> _Part:
        return _Part((name, name), self.modules, self.parameters)


class _Use:
    """Which parameters a forward pass uses, and when: ``first`` and ``last`` by name."""

    def __init__(self, classifier: Classifier) -> None:
        self.module = classifier.module
        self.parameters = dict(classifier.module.named_parameters())
        watch = _Watch(private_tree(classifier.module))
        spec = classifier.spec
        reference = next((p for p in self.parameters.values() if p.is_floating_point()), torch.empty(0))
        noise_NCHW = torch.randn(1, spec.channels, *spec.input_size, generator=torch.Generator().manual_seed(0))
        noise_NCHW = in_format_of(classifier.module, noise_NCHW.to(reference))
        with torch.no_grad(), watch:
            watch.tree(noise_NCHW)
        self.first = {name: watch.first[id(p)] for name, p in self.parameters.items() if id(p) in watch.first}
        self.last = {name: watch.last[id(p)] for name, p in self.parameters.items() if id(p) in watch.first}

    def when(self, part: _Part) -> int:
        return max(self.last[name] for name in part.parameters)

    def weights(self, part: _Part) -> int:
        """How many of its parameters are matrices or filters, not scales or biases."""
        return sum(self.parameters[name].ndim > 1 for name in part.parameters)

    def within(self, name: str) -> tuple[str, ...]:
        prefix = f"{name}." if name else ""
        return tuple(each for each in self.last if each == name or each.startswith(prefix))

    def opened(self, part: _Part) -> list[_Part]:
        """The parts that it consists of; empty for a layer, and for what is scripted and shows no parts."""
        (name,) = part.modules
        if name in self.parameters:
            return []
        prefix = f"{name}." if name else ""
        held = dict.fromkeys(each.removeprefix(prefix).partition(".")[0] for each in part.parameters)
        layers = dict(self.module.get_submodule(name).named_children())
        shown = [each for each in held if not isinstance(layers.get(each), torch.jit.ScriptModule)]
        # The network itself may hold weights and no layers.
        is_open = bool(shown) if not name else any(each in layers for each in shown)
        return [_part(self, prefix + each) for each in held] if is_open else []


def _part(used: _Use, name: str) -> _Part:
    return _Part((name, name), (name,), used.within(name))


class _Watch(TorchFunctionMode):
    """Notes which parameters each function is given.

    Not hooks alone, which miss ``F.conv2d(x, self.weight)``. What reads a weight in ways that functions do not show,
    such as a scripted layer, is noted as it ends.
    """

    def __init__(self, tree: nn.Module) -> None:
        super().__init__()
        self.tree = tree
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self._clock = 0
        for module in tree.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                scripted = (c for c in module.children() if isinstance(c, torch.jit.ScriptModule))
                own = [*module.parameters(recurse=False), *(p for each in scripted for p in each.parameters())]
                module.register_forward_hook(partial(self._ended, [id(p) for p in own]))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Reading an attribute, such as the dtype that the images are to have, is no use of a weight.
        if getattr(func, "__name__", "") != "__get__":
            self._clock += 1
            for tensor in _tensors((*args, *(kwargs or {}).values())):
                self.first.setdefault(id(tensor), self._clock)
                self.last[id(tensor)] = self._clock
        return func(*args, **(kwargs or {}))

    def _ended(self, own: Sequence[int], *_: Any) -> None:
        self._clock += 1
        for each in own:
            if self.first.setdefault(each, self._clock) == self._clock:
                self.last[each] = self._clock


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    nested = [each for value in values if isinstance(value, list | tuple) for each in _tensors(value)]
    return [*nested, *(value for value in values if isinstance(value, nn.Parameter))]


def _parts(used: _Use, first_convolution: str) -> list[_Part]:
    parts = [_part(used, "")]
    total = used.weights(parts[0])
    while True:
        head = max(parts, key=used.when)
        first = parts[_first(parts, used, first_convolution)]
        heavy = [part for part in parts if 2 * used.weights(part) > total or part in (head, first)]
        several = [part for part in heavy if used.weights(part) > 1 or part.modules == ("",)]
        part, opened = next(((each, new) for each in several if (new := used.opened(each))), (None, []))
        if part is None:
            return parts
        parts = [each for each in parts if each is not part] + opened


def _first(parts: Sequence[_Part], used: _Use, first_convolution: str) -> int:
    """Which of the parts holds the first convolution; where the network names none, the first weight to be used."""
    names = used.within(first_convolution) if first_convolution else ()
    earliest = min(names or used.first, key=used.first.__getitem__)
    return next(index for index, part in enumerate(parts) if earliest in part.parameters)


def _with_normalisation(parts: Sequence[_Part], used: _Use) -> list[_Part]:
    """The parts, the last first, those without a weight of their own joined to the one that runs before them."""
    kept: list[_Part] = []
    waiting: list[_Part] = []
    for part in parts:
        waiting.append(part)
        if used.weights(part):
            kept.append(_Part.join(waiting).named(part.name))
            waiting = []
    if not waiting:
        return kept
    # Nothing runs before these: they scale the image, for instance.
    name = kept[-1].name if kept else waiting[0].name
    return [*kept[:-1], _Part.join([*kept[-1:], *waiting]).named(name)]


def _merged(parts: Sequence[_Part], used: _Use, most: int) -> list[_Part]:
    """At most so many: neighbours are joined that hold the fewest weights together, of equal ones the deepest."""
    merged = list(parts)
    while len(merged) > most:
        sizes = [used.weights(part) for part in merged]
        lightest = min(range(len(merged) - 1), key=lambda n: (sizes[n] + sizes[n + 1], -n))
        merged[lightest : lightest + 2] = [_Part.join(merged[lightest : lightest + 2])]
    return merged
