"""Whether pip installed the torch that an image is to have: ``check_torch.py VARIANT``, in the image's environment.

Reads torch's files without importing it, so it works before the packages that torch needs are there.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Ends with 2 and a line on standard error where the torch is another."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("error: torch is not installed")
    facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    if said := complaint(sys.argv[1], facts["__version__"], facts["cuda"]):
        print(f"error: {said}", file=sys.stderr)  # noqa: T201 - it is a command
        sys.exit(2)


def complaint(variant: str, version: str, cuda: str | None) -> str | None:
    """Why this torch is not for that variant; ``cuda`` is the version that it was built for."""
    if variant == "cuda" and cuda is None:
        return (
            f"VARIANT=cuda, but pip found torch {version}, which is built without CUDA; take the index of CPU wheels "
            "out of pip's configuration, or build VARIANT=cpu"
        )
    if variant != "cuda" and cuda is not None:
        return (
            f"VARIANT={variant}, but pip found torch {version}, which is built for CUDA {cuda} and brings gigabytes of "
            f"its libraries; add an index that has torch {version.partition('+')[0]}+cpu, such as PyTorch's own of CPU "
            "wheels, to pip's configuration (extra-index-url), or build VARIANT=cuda"
        )
    return None


if __name__ == "__main__":
    main()
