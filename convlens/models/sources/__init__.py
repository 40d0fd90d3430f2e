"""Where models come from.

A new source is one new file here, ``NAME_.py``, holding a class under ``@model_source("NAME")``.

Files are imported when their source is asked for, so that ``torchvision:`` does not load timm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from convlens.errors import ModelError
from convlens.models.model_id import ModelId, ModelName, ModelOptions
from convlens.models.preprocessing import Preprocessing
from convlens.utils.registry import Registry


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
    def draft(self, name: ModelId, options: ModelOptions) -> Draft:
        """The network with weights; raises ModelError for whatever is unknown, contradictory or not to be had."""

    @abstractmethod
    def skeleton(self, name: ModelId, classes: int) -> nn.Module:
        """The architecture alone, weights of no meaning, nothing downloaded."""

    def shown(self, name: ModelId) -> str:
        """The name as it may be shown: without folders, sizes and so on, which the spec has."""
        weights = name.options.get("weights")
        return f"{name.head}?weights={Path(weights).name}" if weights else name.head

    def portable(self, name: ModelId, folder: Path) -> str:
        """Puts into an archive's folder what ``skeleton`` needs there; returns the name to be recorded."""
        return name.head

    def located(self, name: ModelId, folder: Path) -> str:
        """The recorded name as one that ``skeleton`` understands, now that the archive lies in this folder."""
        return name.text


# A file each: ``torchvision:`` must not pay for importing timm.
_SOURCES: Registry[Source] = Registry(__name__, noun="model source", error=ModelError, suffix="_")


def model_source(name: str) -> Callable[[type[Source]], type[Source]]:
    """Register a source under the word before the first colon."""

    def register(cls: type[Source]) -> type[Source]:
        _SOURCES.add(name, cls())
        return cls

    return register


def source_names() -> tuple[str, ...]:
    """All sources, by the files in this folder."""
    return _SOURCES.names()


def find_source(name: str) -> Source:
    """The source of that name; raises ModelError listing those there are."""
    return _SOURCES.get(name)
