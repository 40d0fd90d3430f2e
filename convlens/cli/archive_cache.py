"""Archives and their graphs, built only where missing or out of date; for ``archive``, ``serve`` and ``demo``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convlens.acceleration import cached_graphs, can_export
from convlens.cli.console import print_message, progress_bar, spinner
from convlens.engine.engine import EngineOptions
from convlens.errors import UnsupportedModelError
from convlens.explain import ForwardPass, run
from convlens.models import Classifier, pack
from convlens.runtime.graph_contract import Strategy
from convlens.torchserve import archive
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.types import Step

Runtime = Literal["torch", "onnx"]


def current_archive(
    classifier: Classifier,
    *,
    name: str,
    store: Path,
    gallery: Path | None,
    graphs: Path | None = None,
    runtime: Runtime = "torch",
    version: str = "1.0",
    options: ArchiveOptions | None = None,
) -> Path:
    """``store/NAME.mar`` for this model, gallery and graphs, built only where it is missing or out of date.

    With ``runtime="onnx"`` the graphs are the model, and no network goes in.
    """
    options = options or ArchiveOptions()
    if options.methods is None:
        methods = _graph_methods(graphs) if runtime == "onnx" and graphs else _network_methods(classifier)
        options = replace(options, methods=(*methods, "neighbours") if gallery else methods)
    with tempfile.TemporaryDirectory(prefix="convlens-pack-") as temp:
        model_dir = None if runtime == "onnx" else Path(temp) / "model"
        if model_dir is not None:
            with spinner("packing the model"):
                pack(classifier, model_dir)
        inputs: dict[str, Any] = {"model_dir": model_dir, "gallery": gallery, "graphs": graphs}
        fingerprint = archive.fingerprint(name=name, version=version, options=options, **inputs)
        path = store / f"{name}.mar"
        if archive.is_current(path, fingerprint):
            print_message(f"{path} is up to date")
            return path
        with spinner(f"building {path}"):
            return archive.build(name=name, store=store, version=version, options=options, **inputs)


def archive_graphs(classifier: Classifier, runtime: Runtime, *, strategy: Strategy = "full") -> Path | None:
    """The folder of graphs for an archive of this runtime, exported unless the cache already has them.

    None where onnx is not installed and the runtime is torch, which can sweep without graphs; RequestError for onnx.
    """
    if not can_export() and runtime == "torch":
        print_message("onnx is not installed: occlusion sweeps will run on torch")
        return None
    from export.bundle import ALONE, BESIDE  # on first use: the exporter takes a second to import

    kinds = ALONE if runtime == "onnx" else BESIDE
    with progress_bar("exporting graphs", len(kinds)) as bar:

        def show(step: Step) -> None:
            bar.update(bar.task_ids[0], description=f"exporting {step.stage}", completed=step.done)

        folder = cached_graphs(classifier, kinds=kinds, strategy=strategy, on_step=show)
        bar.update(bar.task_ids[0], description="graphs", completed=len(kinds))
    return folder


def _graph_methods(graphs: Path) -> tuple[str, ...]:
    """The engine's default methods, without those that have no graph in the folder."""
    present = {"occlusion", *(file.stem for file in graphs.glob("*.onnx"))}  # any graph of scores can be swept with
    return tuple(name for name in EngineOptions.default_methods if name in present)


def _network_methods(classifier: Classifier) -> tuple[str, ...]:
    """The engine's default methods, without those that are not defined for the network."""
    return tuple(name for name in EngineOptions.default_methods if _is_defined(classifier, name))


def _is_defined(classifier: Classifier, method: str) -> bool:
    """Whether the method runs on a grey image: only a run shows activations that a ReLU rule does not cover."""
    spec = classifier.spec
    grey_NCHW = np.zeros((1, spec.channels, *spec.input_size), np.float32)
    side = max(spec.input_size)
    options = {"window": side, "stride": side} if method == "occlusion" else {}
    try:
        run(method, ForwardPass(classifier, grey_NCHW), options=options)
    except UnsupportedModelError:
        return False
    return True
