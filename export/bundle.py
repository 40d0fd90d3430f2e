"""All graphs that an archive wants of one model, as a folder: exported once, and again when what made them changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import convlens
from convlens.errors import ConvLensError, ModelError, RequestError, UnsupportedModelError
from convlens.models import Classifier
from convlens.models.manifest import GRAPHS, read_manifest, write_manifest
from convlens.runtime.graph_contract import Kind, Strategy, labels_sha256
from convlens.utils.files import replace_folder
from export.exporter import ExportReport, export

# Beside a network: what makes its sweeps faster. Without one: all that there is; sweeps then go through the embedding's
# graph in batches, on a CPU as fast as in a graph of their own, whose loop ONNX Runtime keeps in memory twice.
BESIDE: tuple[Kind, ...] = ("scores", "occlusion")
ALONE: tuple[Kind, ...] = ("embedding", "saliency", "guided_backprop", "deconvnet")
# Windows of a turn: on two cores as fast as any, and less memory than more.
CHUNK = 4
# Defined for ReLU networks only; others simply do without.
_RELU_ONLY: tuple[Kind, ...] = ("guided_backprop", "deconvnet")


@dataclass(frozen=True)
class Bundle:
    """``skipped`` holds (kind, reason) of graphs that are not defined for this network."""

    folder: Path
    reports: tuple[ExportReport, ...]
    skipped: tuple[tuple[Kind, str], ...]


def bundle(
    classifier: Classifier,
    folder: Path,
    *,
    kinds: Sequence[Kind] = ALONE,
    window: int = 32,
    stride: int = 16,
    strategy: Strategy = "full",
    on_step: Callable[[Kind], None] = lambda kind: None,
) -> Bundle:
    """Write a graph of each kind (but features) and ``model.json`` into ``folder``; what an earlier call wrote goes.

    Beside and then renamed: the folder is the old one or the whole new one. ``on_step`` is told each kind as its turn
    comes. Guided backprop and deconvnet are skipped for networks that they are not defined for. Raises RequestError for
    a folder with other things in it, and as ``export`` does.
    """
    _require_ours(folder)
    reports, skipped = [], []
    try:
        with replace_folder(folder) as draft:
            for kind in kinds:
                on_step(kind)
                try:
                    reports.append(_one(classifier, kind, draft, window, stride, strategy))
                except UnsupportedModelError as error:
                    if kind not in _RELU_ONLY:
                        raise
                    skipped.append((kind, error.message))
            write_manifest(draft, source=GRAPHS, spec=classifier.spec)
    except OSError as error:
        raise ConvLensError(f"{folder} cannot be written ({error}); choose another folder or make room") from error
    return Bundle(folder, tuple(replace(one, path=folder / one.path.name) for one in reports), tuple(skipped))


def cached_bundle(
    classifier: Classifier,
    cache: Path,
    *,
    kinds: Sequence[Kind],
    window: int = 32,
    stride: int = 16,
    strategy: Strategy = "full",
    on_step: Callable[[Kind], None] = lambda kind: None,
) -> Path:
    """The folder below ``cache`` with these graphs of these weights, written by this ConvLens; made where it is not."""
    spec = classifier.spec
    made_by = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    key = [spec.weights_sha256, labels_sha256(spec.labels), spec.crop, spec.mean, spec.std, spec.embedding_layer]
    key += [list(kinds), window, stride, strategy, convlens.__version__, made_by]
    folder = cache / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    if not _is_whole(folder):
        bundle(classifier, folder, kinds=kinds, window=window, stride=stride, strategy=strategy, on_step=on_step)
    return folder


def _one(
    classifier: Classifier, kind: Kind, folder: Path, window: int, stride: int, strategy: Strategy
) -> ExportReport:
    path = folder / f"{kind}.onnx"
    if kind == "occlusion":
        return export(classifier, kind, path, window=window, stride=stride, batch=CHUNK, strategy=strategy)
    return export(classifier, kind, path)


def _is_whole(folder: Path) -> bool:
    """Whether an earlier call wrote it; a packed network has a ``model.json`` as well, of another source."""
    try:
        source, _ = read_manifest(folder)
    except ModelError:
        return False
    return source == GRAPHS


def _require_ours(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not _is_whole(folder):
        raise RequestError(f"{folder} holds other things than graphs; choose a new folder or empty it", field="path")
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; give a folder", field="path")
