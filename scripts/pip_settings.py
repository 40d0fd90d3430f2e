"""This machine's pip configuration as files that a build can be given as secrets: ``pip.conf`` and ``ca.crt``.

Both are written always, empty where there is nothing to say, because a build names them always.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

# What belongs to this machine alone and would only harm inside an image.
_OURS = {"cache-dir", "log", "prefix", "require-virtualenv", "root", "target", "user"}
CERTIFICATES = "/run/secrets/pip_ca"  # where the Dockerfile mounts ca.crt


def main() -> None:
    """Write both files into the folder given."""
    folder = Path(sys.argv[1])
    command = [sys.executable, "-m", "pip", "config", "list"]
    write(subprocess.run(command, capture_output=True, text=True, check=True).stdout, folder)


def write(listed: str, folder: Path) -> None:
    """``listed``: what ``pip config list`` prints."""
    found = settings(listed)
    authorities = Path(found["cert"]).read_bytes() if "cert" in found else b""
    if authorities:
        found["cert"] = CERTIFICATES
    lines = [f"{key} = {value.replace(chr(10), chr(10) + '    ')}\n" for key, value in found.items()]
    (folder / "pip.conf").write_text("".join(["[global]\n", *lines]), encoding="utf-8")
    (folder / "ca.crt").write_bytes(authorities)


def settings(listed: str) -> dict[str, str]:
    """Lines like ``global.index-url='https://…'`` as pairs; the environment's (``:env:``) win, as they do in pip."""
    pairs = [line.partition("=") for line in listed.splitlines() if "=" in line]
    ranked = sorted(pairs, key=lambda pair: pair[0].startswith(":env:"))
    named = {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, _, value in ranked}
    return {key: value for key, value in named.items() if key not in _OURS}


if __name__ == "__main__":
    main()
