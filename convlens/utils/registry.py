"""Values by name, each registered by a file of one package: files are found, not listed.

Adding a method, a kind of job or a source of models is adding one file; nothing else is edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Generic, TypeVar

from convlens.errors import ConvLensError, unknown_name

Value = TypeVar("Value")


class Registry(Generic[Value]):
    """What the files of ``package`` register, by name; ``noun`` names a value in errors.

    Without ``suffix`` all files are imported before the first look-up. With it, the file ``NAME{suffix}.py`` registers
    NAME and is imported when that is looked up, so that files which import heavy libraries cost nothing until then.
    """

    def __init__(
        self, package: str, *, noun: str, error: type[ConvLensError], field: str | None = None, suffix: str = ""
    ) -> None:
        self._package, self._noun, self._suffix = package, noun, suffix
        self._error, self._field = error, field
        self._values: dict[str, Value] = {}
        self._complete = False

    def add(self, name: str, value: Value) -> None:
        """Register the value; a later one of the same name takes its place."""
        self._values[name] = value

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        if self._suffix:
            return tuple(sorted(file.removesuffix(self._suffix) for file in self._files()))
        if not self._complete:
            for file in self._files():
                importlib.import_module(f"{self._package}.{file}")
            self._complete = True
        return tuple(sorted(self._values))

    def get(self, name: str) -> Value:
        """The value of that name; raises ``error`` with near matches and the names there are."""
        known = self.names()
        if name not in known:
            raise self._error(unknown_name(self._noun, name, known), field=self._field)
        if self._suffix:
            importlib.import_module(f"{self._package}.{name}{self._suffix}")
        return self._values[name]

    def _files(self) -> list[str]:
        package = importlib.import_module(self._package)
        return [file.name for file in pkgutil.iter_modules(package.__path__) if file.name.endswith(self._suffix)]
