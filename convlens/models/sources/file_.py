"""``file:PATH:FACTORY``: a network that a function of the user's own file makes."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from convlens.errors import ModelError, near_matches
from convlens.models.checkpoints import load_weights
from convlens.models.model_id import ModelId, ModelName, ModelOptions
from convlens.models.preprocessing import IMAGENET, require_normalisation
from convlens.models.sources import Source, SourceModel, model_source
from convlens.models.weights import seeded

_ARCHITECTURE = "architecture.py"
_ALONE = (
    "put the code into the one file, or make a package of it that is installed, here and where it is served, or pack "
    "its graphs: export.bundle(classifier, FOLDER)"
)
# What a user's file raises when it is wrong, in practice. Others pass, with a traceback that names the file anyway.
_CODE_ERRORS = (
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
    that returns an ``nn.Module``. The file's code runs. Images are prepared as for ImageNet unless the options say
    otherwise; networks whose first convolution takes other channels than three need ``mean`` and ``std``.
    """

    def names(self) -> Iterable[ModelName]:
        return []

    def load(self, model_id: ModelId, options: ModelOptions) -> SourceModel:
        module = self.architecture(model_id, 0)
        if options.weights is not None:
            load_weights(module, options.weights, key=options.weights_key)
        channels = options.channels or _channels(module)
        mean, std = require_normalisation(options, channels)
        return SourceModel(module, replace(IMAGENET, mean=mean, std=std), None)

    def architecture(self, model_id: ModelId, classes: int) -> nn.Module:
        path, factory = _path_and_factory(model_id)
        make = _factory(_import(path), path, factory)
        try:
            with seeded():
                module = make()
        except _CODE_ERRORS as error:
            raise ModelError(f"{path}: {factory}() failed: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise ModelError(f"{path}: {factory}() returned a {type(module).__name__}; it should return an nn.Module")
        return module

    def display_name(self, model_id: ModelId) -> str:
        path, factory = _path_and_factory(model_id)
        weights = model_id.options.get("weights")
        return f"file:{path.name}:{factory}" + (f"?weights={Path(weights).name}" if weights else "")

    def pack_architecture(self, model_id: ModelId, folder: Path) -> str:
        path, factory = _path_and_factory(model_id)
        _require_alone(path)
        if path.resolve() != (folder / _ARCHITECTURE).resolve():
            shutil.copyfile(path, folder / _ARCHITECTURE)
        return f"file:{_ARCHITECTURE}:{factory}"

    def locate_architecture(self, recorded: ModelId, folder: Path) -> str:
        _, factory = _path_and_factory(recorded)
        return f"file:{folder / _ARCHITECTURE}:{factory}"


def _channels(module: nn.Module) -> int:
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    return first.in_channels if first else 3


def _path_and_factory(model_id: ModelId) -> tuple[Path, str]:
    path, _, factory = model_id.rest.rpartition(":")
    if not path.endswith(".py") or not factory.isidentifier():
        raise ModelError(f"{model_id.text!r} should read file:PATH.py:FACTORY, FACTORY being a function in that file")
    return Path(path).expanduser(), factory


def _import(path: Path) -> ModuleType:
    """The file as a module under a name of its own, so that two files called net.py do not meet."""
    try:
        code = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the model's file {path} cannot be read: {error.strerror}") from error
    unique = f"convlens_file_{hashlib.sha256(str(path.resolve()).encode() + code).hexdigest()[:16]}"
    return sys.modules[unique] if unique in sys.modules else _execute(path, unique, code)


def _require_alone(path: Path) -> None:
    """ModelError for a file that imports another one of its folder, which would not be packed with it."""
    neighbours = _neighbours(path)
    if neighbours:
        raise ModelError(
            f"{path} imports {', '.join(neighbours)} from its own folder, and one file is packed; {_ALONE}"
        )


def _neighbours(path: Path) -> list[str]:
    """What the file imports of its own folder: modules and packages beside it, as far as they are named in it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []  # whoever imports the file says so better
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update((alias.name.partition(".")[0], None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names[f"{'.' * node.level}{node.module or ''}"] = None
            else:
                names[(node.module or "").partition(".")[0]] = None
    return [name for name in names if name.startswith(".") or _is_beside(path, name)]


def _is_beside(path: Path, name: str) -> bool:
    folder = path.resolve().parent
    # A package without __init__.py is one too, unless it is a folder of something else.
    return (folder / f"{name}.py").is_file() or any((folder / name).glob("*.py"))


class _Uncached(InspectLoader):
    """Runs the source that was read, and keeps nothing compiled."""

    # Python's own loader keeps compiled files, and takes a source that was edited within a second, to the same length,
    # for the old one.

    def __init__(self, path: Path, code: bytes) -> None:
        self._path, self._code = path, code

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._code)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._code, str(self._path))


def _execute(path: Path, unique: str, code: bytes) -> ModuleType:
    loader = _Uncached(path, code)
    spec = ModuleSpec(unique, loader, origin=str(path))
    spec.has_location = True  # so that the module knows its file
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pickle look their module up there
    try:
        loader.exec_module(module)
    except _CODE_ERRORS as error:
        del sys.modules[unique]
        neighbours = _neighbours(path) if isinstance(error, ImportError) else []
        if neighbours:
            raise ModelError(
                f"the model's file {path} imports {', '.join(neighbours)} from its own folder ({error}), and a model's "
                f"file stands alone; {_ALONE}"
            ) from error
        raise ModelError(f"the model's file {path} failed to import: {type(error).__name__}: {error}") from error
    return module


def _factory(module: ModuleType, path: Path, factory: str) -> Any:
    function = getattr(module, factory, None)
    if not callable(function):
        known = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        raise ModelError(
            f"{path} has no function {factory!r}; it has: {', '.join(known) or 'none'}{near_matches(factory, known)}"
        )
    return function
