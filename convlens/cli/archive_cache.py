"""An archive that is up to date: built when its inputs have changed, reused when not."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convlens.cli.console import console, counted, step
from convlens.engine.engine import EngineOptions
from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain import ForwardPass, run
from convlens.models import Classifier, pack
from convlens.runtime.graph_contract import Kind, Strategy
from convlens.torchserve import archive
from convlens.torchserve.archive_config import ArchiveOptions

CACHE = Path(".convlens") / "graphs"
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
        usual = graph_methods(graphs) if runtime == "onnx" and graphs else default_methods(classifier)
        options = replace(options, methods=(*usual, "neighbours") if gallery else usual)
    with tempfile.TemporaryDirectory(prefix="convlens-pack-") as temp:
        model_dir = None if runtime == "onnx" else Path(temp) / "model"
        if model_dir is not None:
            with step("packing the model"):
                pack(classifier, model_dir)
        inputs: dict[str, Any] = {"model_dir": model_dir, "gallery": gallery, "graphs": graphs}
        said = archive.fingerprint(name=name, version=version, options=options, **inputs)
        path = store / f"{name}.mar"
        if archive.is_current(path, said):
            console.print(f"{path} is up to date", markup=False, highlight=False, soft_wrap=True)
            return path
        with step(f"building {path}"):
            return archive.build(name=name, store=store, version=version, options=options, **inputs)


def graphs_for(classifier: Classifier, runtime: Runtime, *, strategy: Strategy = "full") -> Path | None:
    """The graphs that an archive of this kind wants, exported where an earlier run has not left them.

    None where onnx is not installed and the network can do without; RequestError where it cannot.
    """
    if importlib.util.find_spec("onnx") is None:
        if runtime == "onnx":
            raise RequestError("exporting graphs needs onnx; run `pip install 'convlens[onnx]'`")
        console.print("onnx is not installed: sweeps will run by torch", markup=False, highlight=False)
        return None
    from export.bundle import ALONE, BESIDE, cached_bundle  # on first use: the exporter takes a second to import

    kinds = ALONE if runtime == "onnx" else BESIDE
    with counted("exporting graphs", len(kinds)) as bar:

        def tell(kind: Kind) -> None:
            bar.update(bar.task_ids[0], description=f"exporting {kind}", completed=kinds.index(kind))

        folder = cached_bundle(classifier, CACHE, kinds=kinds, strategy=strategy, on_step=tell)
        bar.update(bar.task_ids[0], description="graphs", completed=len(kinds))
    return folder


def graph_methods(graphs: Path) -> tuple[str, ...]:
    """What ``/explanations`` answers by itself: the usual methods, less those there are no graphs of."""
    present = {"occlusion", *(file.stem for file in graphs.glob("*.onnx"))}  # any graph of scores can be swept with
    return tuple(name for name in EngineOptions.default_methods if name in present)


def default_methods(classifier: Classifier) -> tuple[str, ...]:
    """The same for a network: the usual methods, less those it does not allow."""
    return tuple(name for name in EngineOptions.default_methods if _allows(classifier, name))


def _allows(classifier: Classifier, method: str) -> bool:
    """Whether the method is defined for this network; asked by trying, on a grey picture."""
    side = classifier.spec.crop
    grey_NCHW = np.zeros((1, 3, side, side), np.float32)
    options = {"window": side, "stride": side} if method == "occlusion" else {}
    try:
        run(method, ForwardPass(classifier, grey_NCHW), options=options)
    except UnsupportedModelError:
        return False
    return True
