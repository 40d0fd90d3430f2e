"""Where models come from: a file ``NAME_.py`` for each source, holding a class under ``@model_source("NAME")``."""

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
class SourceModel:
    """A network with its weights, as its source gives it; ``labels`` None: they are ``class 0``, …"""

    module: nn.Module
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None


class Source(ABC):
    """One place that models come from."""

    @abstractmethod
    def names(self) -> Iterable[ModelName]:
        """Full names that can be loaded, in alphabetical order."""

    @abstractmethod
    def load(self, model_id: ModelId, options: ModelOptions) -> SourceModel:
        """The network with weights; raises ModelError for what is unknown, contradictory or cannot be downloaded."""

    @abstractmethod
    def architecture(self, model_id: ModelId, classes: int) -> nn.Module:
        """The network alone, with weights of no meaning; nothing is downloaded."""

    def display_name(self, model_id: ModelId) -> str:
        """The name as it may be shown: without folders, and without sizes and the like, which the spec has."""
        weights = model_id.options.get("weights")
        return f"{model_id.head}?weights={Path(weights).name}" if weights else model_id.head

    # Two names of a packed model's architecture: as its manifest records it, which must hold wherever the folder is
    # moved, and as architecture() can load it from the place where the folder is now.

    def pack_architecture(self, model_id: ModelId, folder: Path) -> str:
        """Write into ``folder`` what ``architecture`` needs there; returns the name to be recorded."""
        return model_id.head

    def locate_architecture(self, recorded: ModelId, folder: Path) -> str:
        """The recorded name as one that ``architecture`` can load, the packed model lying in ``folder``."""
        return recorded.text


# Each file is imported when its source is named: ``torchvision:`` must not pay for importing timm.
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
