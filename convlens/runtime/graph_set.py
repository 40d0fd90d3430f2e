"""The exported graphs of one model, opened together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convlens.errors import ModelError
from convlens.runtime.graph_contract import Kind
from convlens.runtime.onnx_runtime import OnnxRuntime, Providers

SUFFIX, DRAFT = ".onnx", ".draft.onnx"


@dataclass(frozen=True)
class GraphSet:
    """GraphSet of the same weights and classes: at most one of a kind, but for occlusion and features."""

    runtimes: tuple[OnnxRuntime, ...]

    def all(self, kind: Kind) -> tuple[OnnxRuntime, ...]:
        return tuple(runtime for runtime in self.runtimes if runtime.contract.kind == kind)

    def first(self, kind: Kind) -> OnnxRuntime | None:
        return next(iter(self.all(kind)), None)


def graph_files(path: Path) -> tuple[Path, ...]:
    """The graph itself, or all graphs of a folder but drafts, sorted. ModelError where there is none."""
    if not path.is_dir():
        return (path,)
    found = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.endswith(DRAFT))
    if not found:
        raise ModelError(f"no graphs ({SUFFIX}) in {path}; write some by `convlens export`")
    return tuple(found)


def open_graphs(
    paths: Iterable[Path],
    *,
    weights_sha256: str,
    labels_sha256: str,
    providers: Providers = "auto",
    device_id: int = 0,
    threads: int | None = None,
) -> GraphSet:
    """Files, and folders of them, as sessions.

    Raises ModelError for a graph of other weights or class names than given (with both hashes), for two graphs of one
    kind, and as OnnxRuntime does.
    """
    files = [file for path in paths for file in graph_files(path)]
    opened = [(file, OnnxRuntime(file, providers=providers, device_id=device_id, threads=threads)) for file in files]
    for file, runtime in opened:
        runtime.require_weights(weights_sha256)
        if runtime.contract.labels_sha256 != labels_sha256:
            raise ModelError(
                f"{file} was exported with other class names (sha256 {runtime.contract.labels_sha256}) than those in "
                f"use ({labels_sha256}); export it again"
            )
        if runtime.contract.preprocessing:
            raise ModelError(f"{file} begins at uint8 pictures; export it without preprocessing for this")
    _require_distinct(opened)
    return GraphSet(tuple(runtime for _, runtime in opened))


def _require_distinct(opened: Sequence[tuple[Path, OnnxRuntime]]) -> None:
    seen: dict[object, Path] = {}
    for file, runtime in opened:
        for key in _keys(runtime):
            if key in seen:
                raise ModelError(f"{seen[key]} and {file} are both graphs of {runtime.contract.kind}; give one of them")
            seen[key] = file


def _keys(runtime: OnnxRuntime) -> Iterator[object]:
    contract = runtime.contract
    if contract.kind != "features":
        yield contract.kind, contract.precision, contract.sweep
