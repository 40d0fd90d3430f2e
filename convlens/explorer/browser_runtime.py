"""onnxruntime-web, which runs graphs in a browser.

``python -m convlens.explorer.browser_runtime`` fetches it. Nothing else does: exploring and writing sites work offline.
"""

from __future__ import annotations

import sys
from pathlib import Path

from convlens.explorer.npm_package import NpmPackage

RUNTIME = NpmPackage(
    name="onnxruntime-web",
    version="1.30.0",
    sha512="q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    files=("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    kind="browser runtime",
    purpose="the explorer",
    command="python -m convlens.explorer.browser_runtime",
    licence=Path(__file__).with_name("onnxruntime-license.txt"),
)

if __name__ == "__main__":
    sys.exit(RUNTIME.main())
