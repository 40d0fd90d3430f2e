"""How a result came about, as pairs to be read: the options that took effect, then its meta."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from convlens.types import Attribution, Meta, Result


class Fact(NamedTuple):
    name: str
    value: str
    is_option: bool = False


def facts_of(result: Result) -> tuple[Fact, ...]:
    """Options first, in the order they were given; then meta, without what does not apply (seed, layer, ReLUs)."""
    return (*_options(result.options), *_target(result), *_meta(result.meta))


def _options(options: Mapping[str, Any]) -> Iterator[Fact]:
    for name, value in options.items():
        yield Fact(name, str(value), is_option=True)


def _target(result: Result) -> Iterator[Fact]:
    if isinstance(result, Attribution):
        if result.neurons_N:
            yield Fact("neuron", str(result.neurons_N[0]))
        else:
            yield Fact("target class", str(int(result.target_N[0])))
        yield Fact("target score", f"{result.score_N[0]!s} ({result.meta.target_kind})")
        yield Fact("map size", " × ".join(str(length) for length in result.values_NCHW.shape[1:]))


def _meta(meta: Meta) -> Iterator[Fact]:
    yield Fact("runtime", f"{meta.runtime} on {meta.device}, {meta.dtype}")
    yield Fact("input space", meta.input_space)
    if meta.layer is not None:
        yield Fact("layer", meta.layer)
    if meta.seed is not None:
        yield Fact("seed", str(meta.seed))
    if meta.relu_calls_seen:
        yield Fact("ReLU calls", f"{meta.relu_calls_seen} seen, {meta.relu_calls_ruled} ruled")
    yield Fact(
        "passes, whole batch", f"{meta.forwards} forward, {meta.backwards} backward in {meta.seconds:.3g}\u00a0s"
    )
    yield Fact("weights sha256", meta.weights_sha256)
