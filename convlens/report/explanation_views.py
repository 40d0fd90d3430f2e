"""What both pages of explanations print of a result: titles, the target, and how the result came about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from convlens.errors import ConvLensError
from convlens.types import Attribution, Explanation, Meta, Neighbourhood, Reply, Result
from convlens.visualization.colourbar import BarKind, ColourScale, LaidOver

TOP = 5  # predictions per image


def distinct(values: Iterable[str]) -> tuple[str, ...]:
    """The values without repetitions and without empty ones, in their order."""
    return tuple(dict.fromkeys(value for value in values if value))


@dataclass(frozen=True)
class Wording:
    """Each method's title, and what it shows and does not show, by method name."""

    descriptions: Mapping[str, tuple[str, str]]
    titles: Mapping[str, str]

    def of(self, method: str) -> tuple[str, str, str]:
        """Title, shows, does not show. Raises ConvLensError for a method without a description."""
        if method not in self.descriptions:
            known = ", ".join(sorted(self.descriptions)) or "none"
            raise ConvLensError(f"the report has no description of method {method!r}; described are: {known}")
        words = method.replace("_", " ").strip()
        return (self.titles.get(method) or words[:1].upper() + words[1:], *self.descriptions[method])


@dataclass(frozen=True)
class Target:
    """The class a map is about, and its score on the unchanged image; ``kind`` "cosine" of networks without classes."""

    label: str
    score: float
    kind: str


@dataclass(frozen=True)
class TrueClass:
    """The class that the image is of, as somebody said who knows."""

    index: int
    label: str

    def is_predicted(self, reply: Reply) -> bool:
        """Whether the network's first answer is this class."""
        return bool(reply.predictions) and reply.predictions[0].index == self.index


@dataclass(frozen=True)
class MapScales:
    """What the colours of an explanation's drawings stand for; None where there is no such drawing."""

    overlay: ColourScale[LaidOver] | None = None
    heatmap: ColourScale[BarKind] | None = None


class ColourBar(NamedTuple):
    """A bar's colours, a name of the style sheet, and the numbers at its beginning, middle and end."""

    colours: str
    low: str
    middle: str
    high: str


def colour_bar_of(drawn: ColourScale[BarKind] | ColourScale[LaidOver] | None) -> ColourBar | None:
    """The bar of a scale; None of None."""
    if drawn is None:
        return None
    low = -drawn.limit if drawn.is_signed else 0.0
    return ColourBar(drawn.colours, *map(_number, (low, (low + drawn.limit) / 2, drawn.limit)))


def _number(value: float) -> str:
    """Three digits, and a true minus sign."""
    return f"{value:.3g}".replace("-", "\u2212")


class Fact(NamedTuple):
    """A line of a result's provenance; ``is_option`` where a request may set it."""

    name: str
    value: str
    is_option: bool = False


def target_of(explanation: Explanation) -> Target | None:
    """What the map is about; None for neighbours, which are about no class."""
    result = explanation.result
    if isinstance(result, Neighbourhood):
        return None
    of_embedding = int(result.target_N[0]) < 0 and not result.neurons_N
    return Target(
        explanation.target_label, float(result.score_N[0]), "cosine" if of_embedding else result.meta.target_kind
    )


def facts_of(result: Result) -> tuple[Fact, ...]:
    """Options, target and provenance of a result, without what does not apply."""
    return (*_option_facts(result), *_target_facts(result), *_meta_facts(result.meta))


def _option_facts(result: Result) -> Iterator[Fact]:
    for name, value in result.options.items():
        yield Fact(name, str(value), is_option=True)


def _target_facts(result: Result) -> Iterator[Fact]:
    if isinstance(result, Attribution):
        if result.neurons_N:
            yield Fact("neuron", str(result.neurons_N[0]))
        else:
            yield Fact("target class", str(int(result.target_N[0])))
        yield Fact("target score", f"{result.score_N[0]!s} ({result.meta.target_kind})")
        yield Fact("map size", " × ".join(str(length) for length in result.values_NCHW.shape[1:]))


def _meta_facts(meta: Meta) -> Iterator[Fact]:
    """How the result came about, without what does not apply (seed, layer, ReLUs)."""
    yield Fact("runtime", f"{meta.runtime} on {meta.device}, {meta.precision or meta.dtype}")
    yield Fact("input space", meta.input_space)
    if meta.layer is not None:
        yield Fact("layer", meta.layer)
    if meta.seed is not None:
        yield Fact("seed", str(meta.seed))
    if meta.relu_calls_seen:
        yield Fact("ReLU calls", f"{meta.relu_calls_seen} seen, {meta.relu_calls_ruled} ruled")
    passes = f"{meta.forwards} forward, {meta.backwards} backward in {meta.seconds:.3g}\u00a0s"
    yield Fact("passes, whole batch", passes)
    yield Fact("weights sha256", meta.weights_sha256)
