"""``file:PATH:FACTORY``: a network that a function of the user's own file makes."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Iterable
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from convlens.errors import ModelError, near_matches
from convlens.models.model_id import ModelId, ModelName, ModelOptions
from convlens.models.preprocessing import IMAGENET
from convlens.models.sources import Draft, Source, model_source
from convlens.models.weights import apply_state_dict, read_state_dict, seeded

ARCHITECTURE = "architecture.py"
# What a user's file raises when it is wrong, in practice. Others pass, with a traceback that names the file anyway.
CODE_ERRORS = (
    SyntaxError,
    ImportError,
    NameError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    OSError,
)


@model_source("file")
class File(Source):
    """PATH is a ``.py`` that stands alone (its neighbours cannot be imported), FACTORY a function without arguments
    that returns an ``nn.Module``. The file's code runs. Pictures are prepared as for ImageNet unless the options say
    otherwise.
    """

    def names(self) -> Iterable[ModelName]:
        return []

    def draft(self, name: ModelId, options: ModelOptions) -> Draft:
        module = self.skeleton(name, 0)
        if options.weights is not None:
            apply_state_dict(module, read_state_dict(options.weights), origin=str(options.weights))
        return Draft(module, IMAGENET, None)

    def skeleton(self, name: ModelId, classes: int) -> nn.Module:
        path, factory = _taken_apart(name)
        make = _factory(_imported(path), path, factory)
        try:
            with seeded():
                made = make()
        except CODE_ERRORS as error:
            raise ModelError(f"{path}: {factory}() failed: {type(error).__name__}: {error}") from error
        if not isinstance(made, nn.Module):
            raise ModelError(f"{path}: {factory}() returned a {type(made).__name__}; it should return an nn.Module")
        return made

    def shown(self, name: ModelId) -> str:
        path, factory = _taken_apart(name)
        weights = name.options.get("weights")
        return f"file:{path.name}:{factory}" + (f"?weights={Path(weights).name}" if weights else "")

    def portable(self, name: ModelId, folder: Path) -> str:
        path, factory = _taken_apart(name)
        if path.resolve() != (folder / ARCHITECTURE).resolve():
            shutil.copyfile(path, folder / ARCHITECTURE)
        return f"file:{ARCHITECTURE}:{factory}"

    def located(self, name: ModelId, folder: Path) -> str:
        _, factory = _taken_apart(name)
        return f"file:{folder / ARCHITECTURE}:{factory}"


def _taken_apart(name: ModelId) -> tuple[Path, str]:
    where, _, factory = name.rest.rpartition(":")
    if not where.endswith(".py") or not factory.isidentifier():
        raise ModelError(f"{name.text!r} should read file:PATH.py:FACTORY, FACTORY being a function in that file")
    return Path(where).expanduser(), factory


def _imported(path: Path) -> ModuleType:
    """The file as a module under a name of its own, so that two files called net.py do not meet."""
    try:
        code = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the model's file {path} cannot be read: {error.strerror}") from error
    unique = f"convlens_file_{hashlib.sha256(str(path.resolve()).encode() + code).hexdigest()[:16]}"
    return sys.modules[unique] if unique in sys.modules else _executed(path, unique, code)


class _Uncached(InspectLoader):
    """Runs the text that was read. Python's own loader keeps compiled files beside it, and takes one that was edited
    within a second, to the same length, for the old one.
    """

    def __init__(self, path: Path, code: bytes) -> None:
        self._path, self._code = path, code

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._code)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._code, str(self._path))


def _executed(path: Path, unique: str, code: bytes) -> ModuleType:
    loader = _Uncached(path, code)
    spec = ModuleSpec(unique, loader, origin=str(path))
    spec.has_location = True  # so that the module knows its file
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pickle look their module up there
    try:
        loader.exec_module(module)
    except CODE_ERRORS as error:
        del sys.modules[unique]
        raise ModelError(f"the model's file {path} failed to import: {type(error).__name__}: {error}") from error
    return module


def _factory(module: ModuleType, path: Path, factory: str) -> Any:
    made_here = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
    found = getattr(module, factory, None)
    if not callable(found):
        raise ModelError(
            f"{path} has no function {factory!r}; it has: "
            f"{', '.join(made_here) or 'none'}{near_matches(factory, made_here)}"
        )
    return found
