"""The exported graphs of one model, opened together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convlens.errors import ModelError
from convlens.runtime.graph_contract import CAM, Kind
from convlens.runtime.onnx_runtime import OnnxRuntime, Providers

_SUFFIX, _DRAFT = ".onnx", ".draft.onnx"


@dataclass(frozen=True)
class GraphSet:
    """GraphSet of the same weights and classes: at most one of a kind, but for occlusion, features and cam."""

    runtimes: tuple[OnnxRuntime, ...]

    def all(self, kind: Kind) -> tuple[OnnxRuntime, ...]:
        """The graphs of that kind, none to several."""
        return tuple(runtime for runtime in self.runtimes if runtime.contract.kind == kind)

    def first(self, kind: Kind) -> OnnxRuntime | None:
        """The graph of a kind that there is at most one of."""
        return next(iter(self.all(kind)), None)


def graph_files(path: Path) -> tuple[Path, ...]:
    """The graph itself, or all graphs of a folder but drafts, sorted. ModelError where there is none."""
    if not path.is_dir():
        return (path,)
    # Drafts are graphs that disagreed with torch when they were exported.
    files = sorted(file for file in path.glob(f"*{_SUFFIX}") if not file.name.endswith(_DRAFT))
    if not files:
        raise ModelError(f"no graphs ({_SUFFIX}) in {path}; write some by `convlens export`")
    return tuple(files)


def open_graphs(
    paths: Iterable[Path],
    *,
    weights_sha256: str,
    labels_sha256: str,
    providers: Providers = "auto",
    device_id: int = 0,
    threads: int | None = None,
    tf32: bool = False,
) -> GraphSet:
    """Open files, and folders of them.

    Raises ModelError for a graph of other weights or class names than these (with both hashes), for one that begins at
    uint8 images, for two graphs of one kind, and as OnnxRuntime does.
    """
    files = [file for path in paths for file in graph_files(path)]
    settings: dict[str, Any] = {"providers": providers, "device_id": device_id, "threads": threads, "tf32": tf32}
    opened = [(file, OnnxRuntime(file, **settings)) for file in files]
    for file, runtime in opened:
        runtime.require_weights(weights_sha256)
        if runtime.contract.labels_sha256 != labels_sha256:
            raise ModelError(
                f"{file} was exported with other class names (sha256 {runtime.contract.labels_sha256}) than those in "
                f"use ({labels_sha256}); export it again"
            )
        if runtime.contract.preprocessing:
            raise ModelError(f"{file} begins at uint8 images; export it without preprocessing for this")
    _require_distinct(opened)
    return GraphSet(tuple(runtime for _, runtime in opened))


def _require_distinct(opened: Sequence[tuple[Path, OnnxRuntime]]) -> None:
    files: dict[object, Path] = {}
    for file, runtime in opened:
        contract = runtime.contract
        if contract.kind == "features":  # of other layers, say
            continue
        # Occlusion graphs may differ in precision and windows, which the sweeps choose between; those of class
        # activation maps in their layer, which the request chooses.
        layers = contract.layers if contract.kind == CAM else ()
        key = contract.kind, contract.precision, contract.sweep, layers
        if key in files:
            of_layer = "".join(f" of layer {layer!r}" for layer in layers)
            raise ModelError(f"{files[key]} and {file} are both graphs of {contract.kind}{of_layer}; give one of them")
        files[key] = file
