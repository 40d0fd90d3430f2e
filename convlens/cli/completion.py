"""Shell completion without torch: to complete an option its name is enough, but its file imports a whole engine.

Importing a command takes seconds, which nobody waits for after pressing Tab. So while the shell asks for completions,
the modules that a command runs on are empty stand-ins, and what it imports from them is ``str``: a type that every
option accepts. The command's signature is the real one; its body never runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_REPLACED = ("convlens", "export", "numpy", "PIL")
_KEPT = ("convlens.cli", "convlens.errors")


def is_requested() -> bool:
    """Whether the shell runs this process to complete a line."""
    return "_CONVLENS_COMPLETE" in os.environ


def words() -> list[str]:
    """The words after ``convlens`` on the line to complete: bash hands them over in one variable, zsh in another."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return line.split()[1:]


def skip_heavy_imports() -> None:
    """From now on, import stand-ins for everything but the command line itself. For a process that only completes."""
    sys.meta_path.insert(0, _StandIns())


class _StandIns(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = ".".join(fullname.split(".")[:2])
        if fullname.partition(".")[0] not in _REPLACED or package in _KEPT:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = lambda name: str
