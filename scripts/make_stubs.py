"""The gRPC stubs of the client, made anew from the .proto beside them; the pinned grpcio-tools gives the same bytes."""

from __future__ import annotations

import importlib
import importlib.resources
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = Path("convlens") / "client" / "protocol" / "inference.proto"


def main() -> None:
    """Write the stubs into the repository, or into the folder given."""
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)


def make(root: Path) -> list[Path]:
    """Write ``inference_pb2.py``, ``inference_pb2.pyi`` and ``inference_pb2_grpc.py`` below ``root``, where the .proto
    has its place in the repository; returns their paths. RuntimeError where the compiler refuses it.
    """
    google = importlib.resources.files("grpc_tools") / "_proto"
    rpc = Path(next(iter(importlib.import_module("google.rpc").__path__))).parent.parent
    outs = [f"--{kind}={root}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    # Named from the root, so that the files import each other as parts of this package.
    code = protoc.main(["protoc", f"-I{ROOT}", f"-I{google}", f"-I{rpc}", *outs, str(ROOT / PROTO)])
    if code:
        raise RuntimeError(f"protoc ended with code {code}")
    return [root / PROTO.with_name(f"inference_{end}") for end in ("pb2.py", "pb2.pyi", "pb2_grpc.py")]


if __name__ == "__main__":
    main()
