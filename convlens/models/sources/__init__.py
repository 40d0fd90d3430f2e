"""Where models come from.

A new source is one new file here, ``NAME_.py``, holding a class under ``@model_source("NAME")``.

Files are imported when their source is asked for, so that ``torchvision:`` does not load timm.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from convlens.errors import ModelError, near_matches
from convlens.models.model_id import ModelName, Name, Options
from convlens.models.preprocessing import Preprocessing

_REGISTRY: dict[str, Source] = {}


@dataclass(frozen=True)
class Draft:
    """A network with its weights, not yet looked at. ``labels`` None: they are named ``class 0``, ``class 1``, …"""

    module: nn.Module
    feed: Preprocessing
    labels: tuple[str, ...] | None


class Source(ABC):
    """One place that models come from."""

    @abstractmethod
    def names(self) -> Iterable[ModelName]:
        """Full names that can be loaded, in alphabetical order."""

    @abstractmethod
    def draft(self, name: Name, options: Options) -> Draft:
        """The network with weights; raises ModelError for whatever is unknown, contradictory or not to be had."""

    @abstractmethod
    def skeleton(self, name: Name, classes: int) -> nn.Module:
        """The architecture alone, weights of no meaning, nothing downloaded."""

    def shown(self, name: Name) -> str:
        """The name as it may be shown: without folders, sizes and so on, which the spec has."""
        weights = name.options.get("weights")
        return f"{name.head}?weights={Path(weights).name}" if weights else name.head

    def portable(self, name: Name, folder: Path) -> str:
        """Puts into an archive's folder what ``skeleton`` needs there; returns the name to be recorded."""
        return name.head

    def located(self, name: Name, folder: Path) -> str:
        """The recorded name as one that ``skeleton`` understands, now that the archive lies in this folder."""
        return name.text


def model_source(name: str) -> Callable[[type[Source]], type[Source]]:
    """Registers a source under the word before the first colon."""

    def register(kind: type[Source]) -> type[Source]:
        _REGISTRY[name] = kind()
        return kind

    return register


def source_names() -> tuple[str, ...]:
    """All sources, by the files in this folder."""
    files = [found.name for found in pkgutil.iter_modules(__path__)]
    return tuple(sorted(file.removesuffix("_") for file in files if file.endswith("_")))


def find_source(name: str) -> Source:
    """The source of that name; raises ModelError listing those there are."""
    known = source_names()
    if name not in known:
        raise ModelError(f"no model source {name!r}; there are: {', '.join(known)}{near_matches(name, known)}")
    importlib.import_module(f"{__name__}.{name}_")
    return _REGISTRY[name]
