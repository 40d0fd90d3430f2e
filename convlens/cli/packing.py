"""An archive that is up to date: built when its inputs have changed, reused when not."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from convlens.cli.console import console, step
from convlens.errors import UnsupportedModelError
from convlens.explain import ForwardPass, run
from convlens.models import Classifier, pack
from convlens.service.engine import EngineOptions
from convlens.serving import archive
from convlens.serving.model_config import ArchiveOptions

SCORES = "scores.onnx"


def current_archive(
    classifier: Classifier,
    *,
    name: str,
    store: Path,
    gallery: Path | None,
    scores: Path | None = None,
    version: str = "1.0",
    options: ArchiveOptions | None = None,
) -> Path:
    """``store/NAME.mar`` for this model and gallery, built only where it is missing or out of date.

    ``scores`` is a graph of ``convlens export scores``, for occlusion sweeps on ONNX Runtime.
    """
    options = options or ArchiveOptions()
    if options.methods is None:
        options = replace(options, methods=default_methods(classifier, with_gallery=gallery is not None))
    with tempfile.TemporaryDirectory(prefix="convlens-pack-") as temp:
        model_dir = Path(temp) / "model"
        with step("packing the model"):
            pack(classifier, model_dir)
        if scores is not None:
            shutil.copyfile(scores, model_dir / SCORES)
            options = replace(options, section={**options.section, "scores": f"model/{SCORES}"})
        said = archive.fingerprint(name=name, model_dir=model_dir, gallery=gallery, version=version, options=options)
        path = store / f"{name}.mar"
        if archive.is_current(path, said):
            console.print(f"{path} is up to date", markup=False, highlight=False, soft_wrap=True)
            return path
        with step(f"building {path}"):
            return archive.build(
                name=name, model_dir=model_dir, store=store, gallery=gallery, version=version, options=options
            )


def default_methods(classifier: Classifier, *, with_gallery: bool) -> tuple[str, ...]:
    """What ``/explanations`` answers by itself: the usual methods, less those this network does not allow."""
    usual = (name for name in EngineOptions.default_methods if _allows(classifier, name))
    return (*usual, "neighbours") if with_gallery else tuple(usual)


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
