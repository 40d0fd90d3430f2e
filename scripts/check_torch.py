"""Whether pip installed the torch and torchvision that an image is to have: ``check_torch.py VARIANT``.

Run by the image's Python. Reads their files without importing them: the packages that they need may not be there yet.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

_VERSION = re.compile(r"^__version__ = '([^']+)'", re.MULTILINE)


def main() -> None:
    """Ends with 2 and a line on standard error where one of them is built for something else."""
    for package in ("torch", "torchvision"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
            if said := complaint(sys.argv[1], package, _VERSION.findall(text)[0]):
                sys.stderr.write(f"error: {said}\n")
                sys.exit(2)


def complaint(variant: str, package: str, version: str) -> str | None:
    """Why this build of the package is not for that variant; ``version`` is that of its version.py."""
    # Wheels on the usual index name their CUDA there, too (2.14.1+cu130), though pip shows no more than 2.14.1.
    public, _, local = version.partition("+")
    if variant == "cuda" and not local.startswith("cu"):
        return (
            f"VARIANT=cuda, but pip found {package} {version}, which is built without CUDA; take the index of CPU "
            "wheels out of pip's configuration, or build VARIANT=cpu"
        )
    if variant != "cuda" and local.startswith("cu"):
        return (
            f"VARIANT={variant}, but pip found {package} {version}, which is built for CUDA; add an index that has "
            f"{package} {public}+cpu, such as PyTorch's own of CPU wheels, to pip's configuration (extra-index-url), "
            "or build VARIANT=cuda"
        )
    return None


if __name__ == "__main__":
    main()
