"""The metadata of an exported graph: enough to prepare its inputs, to read its outputs, and to refuse a wrong one.

Imports no onnxruntime, so that the exporter writes contracts and tools read them without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

from convlens.errors import ModelError
from convlens.types import CropMode, Interpolation

# Graphs whose images are prepared otherwise than by a square centre crop are of format 2, which readers of the first
# refuse; all others are written as before.
_FORMAT, _OTHER_IMAGES = "1", "2"
_ADDED = ("crop_mode", "crop_width", "resize_width")
_FORMAT_KEY, _CONTRACT_KEY = "convlens.format", "convlens.contract"

Kind = Literal["scores", "features", "embedding", "occlusion", "saliency", "guided_backprop", "deconvnet", "cam"]
GradientKind = Literal["saliency", "guided_backprop", "deconvnet"]
Strategy = Literal["full", "incremental"]
Precision = Literal["float32", "half"]
ElementType = Literal["float32", "int64", "uint8"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GRADIENTS: tuple[GradientKind, ...] = get_args(GradientKind)
CAM: Literal["cam"] = "cam"
BACKWARD: tuple[Kind, ...] = (*GRADIENTS, CAM)  # graphs with a backward pass

# Names of inputs and outputs, which are in every graph ever exported. A graph of features has one output a layer, named
# after it.
PIXELS, PICTURE, TARGET, FILL, TARGETS = "x_NCHW", "picture_NHWC", "target", "fill", "target_N"
LOGITS, EMBEDDING, SCORES, LOG_SUMS = "logits_NK", "embedding_ND", "score_RQ", "log_sum_exp_RQ"
GRADIENT = "gradient_NCHW"
MAPS, MAPS_GRADIENT = "maps_NCHW", "maps_gradient_NCHW"


@dataclass(frozen=True)
class Port:
    """An input or output. A dimension that is a name (``N``) may be of any size, one that is a number may not."""

    name: str
    shape: tuple[int | str, ...]
    dtype: ElementType


@dataclass(frozen=True)
class SweepGeometry:
    """The windows of an occlusion graph, in pixels; ``batch`` of them run at a time.

    ``incremental`` graphs recompute for each window only what it can change; the scores are the same. ``note`` is the
    reason why a graph for which ``incremental`` was requested is not.
    """

    window: int
    stride: int
    batch: int
    strategy: Strategy = "full"
    note: str = ""


@dataclass(frozen=True)
class GraphContract:
    """The metadata of a graph that ConvLens exported.

    ``crop`` is the height of its images, ``crop_width`` the width where that is another, and so ``resize`` and
    ``resize_width``, all as in ``ModelSpec``; ``mean`` and ``std`` what they are normalised by: beforehand, or in the
    graph itself where ``preprocessing`` (its input then is uint8, channels last). ``layers`` are those whose outputs
    (``features``), whose pooled input (``embedding``) or whose maps and gradient (``cam``) it returns. ``tolerance`` is
    the largest relative difference from torch that its export let pass; ``versions`` names the libraries that made it.
    """

    kind: Kind
    model: str
    weights_sha256: str
    labels_sha256: str
    classes: int
    crop: int
    resize: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    precision: Precision
    preprocessing: bool
    tolerance: float
    versions: Mapping[str, str]
    sweep: SweepGeometry | None = None
    crop_mode: CropMode = "center"
    crop_width: int | None = None
    resize_width: int | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of its images."""
        return self.crop, self.crop_width or self.crop

    @property
    def batch(self) -> int | None:
        """The one batch size that the graph takes; None where it takes any."""
        size = self.inputs[0].shape[0]
        return size if isinstance(size, int) else None

    def require_weights(self, weights_sha256: str) -> None:
        """ModelError where the graph was exported from other weights, with both hashes."""
        if self.weights_sha256 != weights_sha256:
            raise ModelError(
                f"the graph was exported from weights {self.weights_sha256} of {self.model}, but "
                f"those in use are {weights_sha256}; export it again from these"
            )

    def metadata(self) -> dict[str, str]:
        """The two entries of the graph's metadata."""
        usual = {name for name in _ADDED if getattr(self, name) == getattr(GraphContract, name)}
        format = _FORMAT if len(usual) == len(_ADDED) else _OTHER_IMAGES
        return {_FORMAT_KEY: format, _CONTRACT_KEY: _ADAPTER.dump_json(self, exclude=usual).decode()}


_ADAPTER: TypeAdapter[GraphContract] = TypeAdapter(GraphContract)


def read_contract(metadata: Mapping[str, str], *, graph: str) -> GraphContract:
    """The contract in a graph's metadata; ``graph`` names it in errors.

    Raises ModelError for a graph without one, of another format version, or whose contract is damaged.
    """
    if _FORMAT_KEY not in metadata or _CONTRACT_KEY not in metadata:
        raise ModelError(
            f"{graph} was not exported by ConvLens: it has no contract in its metadata; use `python -m export`"
        )
    if metadata[_FORMAT_KEY] not in (_FORMAT, _OTHER_IMAGES):
        raise ModelError(
            f"{graph} has format version {metadata[_FORMAT_KEY]!r}; this ConvLens reads {_FORMAT} and {_OTHER_IMAGES}: "
            "export it again"
        )
    try:
        return _ADAPTER.validate_json(metadata[_CONTRACT_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{graph}: its contract is damaged at {where!r}: {first['msg']}; export it again") from error


def labels_sha256(labels: Sequence[str]) -> str:
    """The sha256 over the class names in their order, each ended by a zero byte."""
    return hashlib.sha256("".join(f"{label}\0" for label in labels).encode()).hexdigest()
