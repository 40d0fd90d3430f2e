"""A bundle: the folder of all graphs that an archive needs of one model, exported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convlens.errors import ConvLensError, ModelError, RequestError, UnsupportedModelError
from convlens.models import Classifier
from convlens.models.manifest import GRAPHS, read_manifest, write_manifest
from convlens.runtime.graph_contract import BACKWARD, CAM, Kind, Strategy
from convlens.types import Step, no_op
from convlens.utils.files import replace_folder
from export.exporter import ExportReport, OnStep, export

# BESIDE a network: graphs that make its sweeps faster. ALONE: everything; sweeps then run the embedding's graph in
# batches, on a CPU as fast as a graph of their own, whose loop ONNX Runtime keeps in memory twice.
BESIDE: tuple[Kind, ...] = ("scores", "occlusion")
ALONE: tuple[Kind, ...] = ("embedding", "saliency", "guided_backprop", "deconvnet", "cam")
# Windows per iteration of a sweep: on two cores as fast as any number, and less memory than a larger one.
_CHUNK = 4
# Defined for ReLU networks, or for networks with a layer of maps, and left out for others.
_NOT_FOR_ALL: tuple[Kind, ...] = ("guided_backprop", "deconvnet", CAM)


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
    on_step: OnStep = no_op,
) -> Bundle:
    """Write a graph of each kind (but features) and ``model.json`` into ``folder``, in place of an earlier bundle.

    They are written beside it and renamed: the folder is the old one or the whole new one. ``on_step`` gets the steps
    of each export, with how many kinds of how many are done. Guided backprop, deconvnet and cam are skipped for
    networks that they are not defined for, and all that explain a class where there are no classes. Raises RequestError
    for a folder with other things in it, and as ``export`` does.
    """
    _require_ours(folder)
    reports, skipped = [], []
    try:
        with replace_folder(folder) as draft:
            for n, kind in enumerate(kinds):

                def show(step: Step, kind: Kind = kind, n: int = n) -> None:
                    on_step(Step(f"{kind}: {step.stage}", n, len(kinds)))

                sweep: dict[str, Any] = {}
                if kind == "occlusion":
                    sweep = {"window": window, "stride": stride, "batch": _CHUNK, "strategy": strategy}
                try:
                    reports.append(export(classifier, kind, draft / f"{kind}.onnx", on_step=show, **sweep))
                except UnsupportedModelError as error:
                    undefined = not classifier.spec.classes and kind in (*BACKWARD, "occlusion")
                    if kind not in _NOT_FOR_ALL and not undefined:
                        raise
                    skipped.append((kind, error.message))
            write_manifest(draft, source=GRAPHS, spec=classifier.spec)
    except OSError as error:
        raise ConvLensError(f"{folder} cannot be written ({error}); choose another folder or make room") from error
    renamed = tuple(replace(report, path=folder / report.path.name) for report in reports)
    return Bundle(folder, renamed, tuple(skipped))


def _is_whole(folder: Path) -> bool:
    """Whether it is a bundle; a packed network has a ``model.json`` as well, of another source."""
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
