"""How a model's name is written: ``source:model[:variant][?key=value&key=value]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import unquote

from convlens.errors import ModelError

UNTRAINED = "untrained"


@dataclass(frozen=True)
class ModelName:
    """One loadable name, and whether its trained weights are on this machine already."""

    name: str
    weights_at_hand: bool


@dataclass(frozen=True)
class Name:
    """A name taken apart. ``rest`` is what stands between the source and the options; ``source`` is empty in a bare
    name.
    """

    text: str
    source: str
    rest: str
    options: Mapping[str, str]

    @property
    def head(self) -> str:
        """The name without its options."""
        return f"{self.source}:{self.rest}"


def parse(text: str) -> Name:
    """Takes a name apart; ``%26`` and the like in an option's value stand for the character itself.

    Raises ModelError for an option without a value, or one given twice.
    """
    head, _, query = text.partition("?")
    source, colon, rest = head.partition(":")
    if not colon:
        source, rest = "", head
    return Name(text, source.strip(), rest.strip(), MappingProxyType(_options(text, query)))


def split_variant(name: Name) -> tuple[str, str]:
    """``("resnet50", "IMAGENET1K_V2")`` of ``torchvision:resnet50:IMAGENET1K_V2``; the variant may be empty."""
    model, _, variant = name.rest.partition(":")
    if not model or ":" in variant:
        raise ModelError(f"{name.text!r} should read {name.source}:NAME or {name.source}:NAME:VARIANT")
    return model, variant


def _options(text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise ModelError(f"{text!r}: {pair!r} should read key=value")
        if key in options:
            raise ModelError(f"{text!r}: {key!r} is given twice")
        options[key] = unquote(value)
    return options
