"""Frozen values that pass between the packages. They hold; they do not draw, save, print or compute.

Names of arrays end in their axes, a letter each, in order: ``x_NCHW``, ``logits_NK``, ``grid_NRQ``.

    N row of the batch   C channel   H height   W width   K class   D feature
    M neighbour          R row of windows       Q column of windows

Arrays are numpy, on the CPU, finite. Frozen are the objects: their fields cannot be set anew. The arrays in them are
writeable, and rows share the memory of their batch, so do not write into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Not made read-only: torch.from_numpy warns of read-only arrays, and every user who goes on in torch would see that.
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bytes8 = NDArray[np.uint8]
"""Images (H, W, 3): RGB, 0..255."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of an image; fractions are meant."""
ScoreKind = Literal["logit", "probability"]
TargetKind = Literal["logit", "probability", "activation"]
ArithmeticPrecision = Literal["float32", "tf32", "half"]
"""float32: IEEE's, on every device. tf32: GPUs may round a product's operands to 10 bits. half: sweeps in half."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
CropMode = Literal["center", "squash", "border"]
"""center: short side resized, then cut. squash: both sides resized, cut. border: long side resized, mean around it."""
Activation = Literal["softmax", "sigmoid", "none"]
"""How logits become probabilities: over all classes, each class by itself, or not at all (shown as they are)."""
CurveKind = Literal["deletion", "insertion"]
"""deletion: a map's best pixels are removed first, and the score should fall. insertion: they are shown first."""


@dataclass(frozen=True)
class ModelSpec:
    """What a caller must know of a model to prepare its input and to read its output.

    Sizes are in pixels. ``mean`` and ``std`` are per channel on the 0..1 scale. ``resize`` is the short side before the
    centre crop of ``crop``. ``embedding_layer`` names the layer whose *input*, averaged over space where it has any, is
    the embedding, ``gradcam_layer`` the last layer with a spatial map (Grad-CAM), ``first_convolution`` the first
    ``nn.Conv2d`` that runs; a name that ends in ``:output`` means what the layer gives, and each is empty where the
    network has no such layer. ``weights_sha256`` is ``convlens.models.weights_sha256`` of the network.

    ``crop`` and ``resize`` are heights; ``crop_width`` and ``resize_width`` are widths where they differ, else None.
    ``display_channels`` are the three that are shown as red, green and blue; empty: the first three, or the only one.
    ``head`` lists the steps from what the network returns to logits (``models/head.py``). Without ``labels`` it has no
    classes: what it returns is the embedding. ``warnings`` go with every result.
    """

    name: str
    crop: int
    resize: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    embedding_layer: str
    gradcam_layer: str
    first_convolution: str
    weights_sha256: str
    crop_mode: CropMode = "center"
    crop_width: int | None = None
    resize_width: int | None = None
    display_channels: tuple[int, ...] = ()
    activation: Activation = "softmax"
    head: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.crop, self.crop_width or self.crop

    @property
    def resize_size(self) -> tuple[int, int]:
        """Height and width that an image is resized to; where both are the same and it is cropped, the short side."""
        return self.resize, self.resize_width or self.resize


@dataclass(frozen=True)
class Step:
    """The progress of long work: ``done`` of ``total`` (of windows, say), both 0 where a stage only begins."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Neuron:
    """One unit of a layer, at ``y`` and ``x`` of its map; without them where the channel is strongest.

    A layer without a map, such as a linear one, has channels only.
    """

    layer: str
    channel: int
    y: int | None = None
    x: int | None = None

    def __str__(self) -> str:
        place = "" if self.y is None else f" at {self.y}, {self.x}"
        return f"{self.layer} channel {self.channel}{place}"


@dataclass(frozen=True)
class Prediction:
    """One class of one image. ``probability`` is by the model's activation: softmax over all classes, or sigmoid."""

    index: int
    label: str
    probability: float
    logit: float


@dataclass(frozen=True)
class Meta:
    """How a result was computed: enough to compute it again, and to judge what it cost.

    ``runtime`` names the runtime, ``sweep`` how a sweep was made (batches, graph, incremental graph). ``precision`` is
    what was multiplied in, whatever was asked for: float64, float32, tf32, bf16 (a CPU told by torch's flags to use it)
    or half; empty where an older server did not say.
    ``relu_calls_seen`` and ``relu_calls_ruled`` count the ReLU calls of the forward pass and those of them under a
    rule, both 0 where the method runs no backward pass of ours. Counts and seconds are those of the whole batch.
    """

    weights_sha256: str
    target_kind: TargetKind
    input_space: str
    dtype: str
    device: str
    runtime: str = "torch"
    sweep: str = ""
    precision: str = ""
    seed: int | None = None
    layer: str | None = None
    relu_calls_seen: int = 0
    relu_calls_ruled: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attribution:
    """Raw, signed maps, one a row, before any reduction or drawing.

    ``values_NCHW`` lives on the model's input grid (C is the model's for gradients, 1 for maps per pixel). ``score_N``
    is the target's score (of ``meta.target_kind``) on the unchanged image. ``extras`` holds what a method returns
    beside the map, such as occlusion's ``grid_NRQ`` of raw drops. Where neurons are explained and no classes,
    ``neurons_N`` holds them, one a row, ``target_N`` is -1 and the score is their activation.
    """

    values_NCHW: Floats
    score_N: Floats
    target_N: Ints
    method: str
    options: Mapping[str, Any]
    meta: Meta
    extras: Mapping[str, Floats] = field(default_factory=dict)
    neurons_N: tuple[Neuron, ...] = ()

    def row(self, n: int) -> Attribution:
        """The n-th row alone, still batch first; its arrays are views."""
        keep = slice(n, n + 1)
        extras = {name: values[keep] for name, values in self.extras.items()}
        return Attribution(
            self.values_NCHW[keep],
            self.score_N[keep],
            self.target_N[keep],
            self.method,
            self.options,
            self.meta,
            extras,
            self.neurons_N[keep],
        )


@dataclass(frozen=True)
class Neighbour:
    """One image of the gallery. ``distance`` is Euclidean (not squared) in the gallery's feature space.

    ``thumbnail`` is an encoded JPEG, empty where the gallery keeps none.
    """

    id: str
    label: str
    distance: float
    thumbnail: bytes = b""


@dataclass(frozen=True)
class Neighbourhood:
    """For each row the nearest images of the gallery, nearest first."""

    neighbours_NM: tuple[tuple[Neighbour, ...], ...]
    method: str
    options: Mapping[str, Any]
    meta: Meta

    def row(self, n: int) -> Neighbourhood:
        """The n-th row alone, still batch first."""
        return Neighbourhood(self.neighbours_NM[n : n + 1], self.method, self.options, self.meta)


Result = Attribution | Neighbourhood


@dataclass(frozen=True)
class ScoreCurve:
    """The target's scores (S,) with the best ``fraction_S`` of the pixels removed (deletion) or shown (insertion).

    ``auc`` is the area under each of the two curves, "probability" and "logit": the mean score on the way.
    """

    fraction_S: Floats
    probability_S: Floats
    logit_S: Floats
    auc: Mapping[ScoreKind, float]


@dataclass(frozen=True)
class Evaluation:
    """How well a map's order of the pixels predicts the score of its class, for this very image.

    ``curves`` holds those that were asked for. The rest is how they were made: in so many ``steps`` of equally many
    pixels, with what the missing pixels show, and how the pixels were ordered, in words; ``seed`` orders equal ones.
    """

    curves: Mapping[CurveKind, ScoreCurve]
    steps: int
    insertion_substrate: str
    deletion_substrate: str
    seed: int
    order: str


@dataclass(frozen=True)
class Explanation:
    """The result of one method for one image: the numbers, and the images drawn from them on request.

    ``overlay_png`` is the map laid over the image that the model saw, ``heatmap_png`` the map alone; both are empty
    unless requested. ``milliseconds`` is this row's even share of the batched call, without the ``evaluation``, which
    is None unless requested.
    """

    id: str
    method: str
    result: Result
    target_label: str
    milliseconds: float
    overlay_png: bytes = b""
    heatmap_png: bytes = b""
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Placement:
    """Which part of the upright image, of ``size`` (width, height) pixels, the model saw."""

    size: tuple[int, int]
    box: Box


@dataclass(frozen=True)
class Reply:
    """The whole answer to one request. ``runtime`` names what ran the network, ``timing_ms`` milliseconds by stage.

    ``activation`` says how probabilities were made of logits.
    """

    model_name: str
    model_version: str
    weights_sha256: str
    request_id: str
    device: str
    predictions: tuple[Prediction, ...]
    explanations: tuple[Explanation, ...]
    warnings: tuple[str, ...]
    timing_ms: Mapping[str, float]
    runtime: str = ""
    placement: Placement | None = None
    activation: str = "softmax"

    @property
    def has_probabilities(self) -> bool:
        """Whether the predictions' probabilities are some; without an activation they are outputs of any size."""
        return self.activation != "none" or all(0 <= each.probability <= 1 for each in self.predictions)


def no_op(*_: object) -> None:
    """The default of ``on_step``, ``on_progress`` and the like: the callback of a caller that does not watch."""
