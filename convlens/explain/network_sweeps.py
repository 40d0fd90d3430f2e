"""The sweep backends of a network: its graphs, torch, torch in half precision."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from convlens.explain.onnx_forward import graph_backends
from convlens.explain.sweeps.autotune import HalfPrecisionScorer, SweepAutotuner
from convlens.explain.sweeps.backends import BatchedSweep, SweepBackend
from convlens.explain.sweeps.device import DeviceSweep, device_sweeps
from convlens.models import Classifier

if TYPE_CHECKING:
    from convlens.runtime.graph_set import GraphSet


def torch_sweeps(classifier: Classifier, graphs: Sequence[SweepBackend] = ()) -> SweepAutotuner:
    """The sweep backends of a network: graphs first, then torch, then torch in half precision.

    Where no further ``graphs`` are given, those of an accelerated network and those of a network on a GPU are kept:
    what one batch captured and timed serves the next.
    """
    kept = classifier.graphs or (classifier.module if classifier.device.type == "cuda" else None)
    if graphs or kept is None:
        return _new_sweeps(classifier, graphs)
    if kept not in _KEPT:
        _KEPT[kept] = _new_sweeps(classifier, ())
    return _KEPT[kept]


# By what lives as long as the classifier does; the sweeps hold neither.
_KEPT: weakref.WeakKeyDictionary[nn.Module | GraphSet, SweepAutotuner] = weakref.WeakKeyDictionary()


def _new_sweeps(classifier: Classifier, graphs: Sequence[SweepBackend]) -> SweepAutotuner:
    module, device = classifier.module, classifier.device
    graphs = [*graphs, *(graph_backends(classifier.graphs) if classifier.graphs else ())]
    if device.type == "cuda":
        return SweepAutotuner([*graphs, *device_sweeps(module, device)])
    # ONNX Runtime's forward pass took .20 to .55 of eager torch's.
    half = BatchedSweep(HalfPrecisionScorer(module, device), precision="half")
    return SweepAutotuner([*graphs, DeviceSweep(module, device), half])
