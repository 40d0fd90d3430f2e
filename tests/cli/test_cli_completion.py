"""Shell completion offers every command and option, and imports nothing that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from convlens import __version__
from convlens.cli.main import COMMANDS, build

COMPLETE = "from convlens.cli.main import main; main()"
HEAVY = {"torch", "numpy", "PIL", "onnx", "httpx"}  # typer itself loads pydantic


def complete(line: str, code: str = COMPLETE) -> list[str]:
    """What bash is offered for the last word of the line."""
    environment = {
        **os.environ,
        "_CONVLENS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    script = f"import sys; sys.argv = ['convlens']; {code}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    return done.stdout.split()


def test_the_version_is_the_package_s() -> None:
    assert CliRunner().invoke(build([]), ["--version"]).output == f"convlens {__version__}\n"


def test_commands_are_completed() -> None:
    assert complete("convlens ") == [*COMMANDS]
    assert complete("convlens re") == ["receptive-field"]
    assert complete("convlens gallery ") == ["build", "add", "query", "info"]


@pytest.mark.parametrize("line", [name for name in COMMANDS if name not in ("cache", "export", "gallery", "jobs")])
def test_every_option_of_a_command_is_completed(line: str) -> None:
    command = get_command(build([line])).commands[line]  # type: ignore[attr-defined]
    options = [name for item in command.params for name in item.opts if name.startswith("--")]
    assert set(options) <= set(complete(f"convlens {line} --"))


@pytest.mark.parametrize(
    "line", ["gallery build --lab", "jobs run --vid", "texture --see", "explain --gr", "serve --po"]
)
def test_completing_an_option_imports_nothing_heavy(line: str) -> None:
    # A stand-in has no file; a module that was really imported has one.
    imported = "[name for name, module in sys.modules.items() if '__file__' in vars(module)]"
    report = f"import atexit; atexit.register(lambda: print(*{imported}))"
    offered, *modules = complete(f"convlens {line}", f"{report}; {COMPLETE}")
    assert offered.startswith(line.split()[-1])
    assert "convlens.cli.main" in modules
    assert HEAVY.isdisjoint(modules)
