"""Graphs of test networks, exported once a session for all tests that do not test the exporter itself."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from convlens.models import Classifier, load, weights_sha256
from export.bundle import Bundle, bundle
from export.exporter import export

_WITHIN_S = 280  # less than a test may take


@dataclass(frozen=True)
class GraphCache:
    """``folder`` may be shared by processes: whoever exports holds a file lock. What it gives is to be read only."""

    folder: Path

    def __call__(self, classifier: Classifier, kind: Any, **options: Any) -> Path:
        """The graph of this kind. Networks are told apart by spec, weights and modules' texts: not by the functions
        that ``nets.Call`` calls.
        """
        facts = (classifier.spec, weights_sha256(classifier.module), repr(classifier.module), kind, options)
        path = self.folder / f"{kind}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.onnx"
        with FileLock(path.with_suffix(".lock"), timeout=_WITHIN_S):
            return path if path.exists() else export(classifier, kind, path, **options).path

    def default_bundle(self) -> Bundle:
        """The default model's graphs, of four kinds: a minute's work."""
        path = self.folder / "default.pickle"
        kinds = ("embedding", "occlusion", "saliency", "guided_backprop")
        with FileLock(path.with_suffix(".lock"), timeout=_WITHIN_S):
            if not path.exists():
                path.write_bytes(pickle.dumps(bundle(load(device="cpu"), self.folder / "default", kinds=kinds)))
            return pickle.loads(path.read_bytes())
