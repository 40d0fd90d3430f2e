"""A channel's activation maximisation, in few steps and several pictures at once that differ from each other.

As Olah et al. 2017 (Feature Visualization, distill.pub/2017/feature-visualization) do it: Fourier coefficients, random
transforms, and a diversity term between the pictures of one channel.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from convlens.instrument import PartialForward, RedirectedRelus, arithmetic, in_format_of
from convlens.models import Classifier
from convlens.synth.base import require_at_least, require_between, require_positive
from convlens.synth.images import half_on_gpus, rounded_to_8_bits, shown, to_uint8
from convlens.synth.parameters import make_parameterization, noise
from convlens.synth.regularisers import RandomTransform, apply_transforms, sample_transforms
from convlens.synth.step_gradient import StepGradient
from convlens.types import Bytes8

_TINY = 1e-30
_START_SPREAD = 0.01  # Lucid's
_REDIRECTED_STEPS = 8  # a unit that nothing excites yet has a gradient of 0
_SMOOTHNESS = 1.35  # as the preset "robust": coarse scales first
_BELOW_0 = 0.1  # what activations below 0 count; a channel that is nowhere above must still move
_SEEDS = 1_000_003  # between the seeds of one run and those of the next


@dataclass(frozen=True)
class MaximisationOptions:
    """``pictures`` of each channel, ``steps`` of Adam of ``rate``, images of ``side`` pixels (at most the network's).

    ``diversity`` is how much of the objective is lost where all pictures of a channel are alike. ``jitter`` (pixels),
    ``scale`` (a share) and ``rotate`` (degrees) are random transforms, each either way.
    """

    pictures: int = 2
    steps: int = 40
    side: int = 112
    rate: float = 0.08
    diversity: float = 0.5
    jitter: float = 8.0
    scale: float = 0.15
    rotate: float = 8.0

    def __post_init__(self) -> None:
        require_between(1, 8, self, "pictures")
        require_at_least(1, self, "steps")
        require_between(16, 1024, self, "side")
        require_positive(self, "rate")
        require_at_least(0, self, "diversity", "jitter", "rotate")
        require_between(0, 0.9, self, "scale")


class ChannelMaximiser:
    """Pictures that maximise the mean of a channel's map, in which values below 0 count a tenth.

    A channel's pictures depend on its number and the seed, and on no other channel made before. RequestError for a
    layer that does not exist.
    """

    def __init__(self, classifier: Classifier, layer: str, options: MaximisationOptions, *, seed: int = 0) -> None:
        self._classifier, self._layer, self._options, self._seed = classifier, layer, options, seed
        height, width = classifier.spec.input_size
        has_map = self._partial(height, width)
        if has_map:
            # Where there is no map, what flattens it fits one size of image only.
            height, width = min(height, options.side), min(width, options.side)
            self._partial(height, width)
        self._size = height, width
        self._ranges = RandomTransform(options.jitter, options.scale, options.rotate)
        # One for all channels: a step that is replayed on a GPU reads its tensors where they lie.
        self._parameter = make_parameterization(
            "fourier",
            options.pictures,
            self._size,
            classifier.spec,
            classifier.device,
            decorrelated=True,
            smoothness=_SMOOTHNESS,
        )
        self._gradients = [StepGradient(partial(self._objective, redirected)) for redirected in (True, False)]

    def pictures(self, channel: int) -> tuple[list[Bytes8], list[float]]:
        """The channel's images (H, W, 3), the most exciting first, and its largest activation on each of them."""
        options, device = self._options, self._classifier.device
        generator = torch.Generator().manual_seed(self._seed * _SEEDS + channel)
        values = self._parameter.values
        with torch.no_grad():
            values.copy_(noise(values.shape, generator, device) * _START_SPREAD)
        optimizer = torch.optim.Adam([values], lr=options.rate, maximize=True)
        which = torch.tensor([channel], device=device)
        with arithmetic(self._classifier.precision, device):
            for step in range(options.steps):
                maps_N23 = sample_transforms(self._ranges, options.pictures, self._size, generator)
                gradient = self._gradients[0 if step < min(_REDIRECTED_STEPS, options.steps // 2) else 1]
                _, _, values.grad = gradient(values, maps_N23, which)
                optimizer.step()
            with torch.no_grad():
                return self._finished(self._parameter.images(), channel)

    def _finished(self, x_NCHW: Tensor, channel: int) -> tuple[list[Bytes8], list[float]]:
        spec = self._classifier.spec
        images = shown(to_uint8(x_NCHW, spec), spec)
        # What can be seen is the image in 8 bits: that is what the activation is of.
        seen_NCHW = torch.cat(rounded_to_8_bits(x_NCHW, spec))
        peak_N = self._output(seen_NCHW)[:, channel].reshape(len(images), -1).amax(1).tolist()
        order = sorted(range(len(images)), key=lambda n: -peak_N[n])
        return [images[n] for n in order], [peak_N[n] for n in order]

    def _partial(self, height: int, width: int) -> bool:
        """Cut the network behind the layer, for images of that size; whether it gives a map."""
        spec = self._classifier.spec
        example_NCHW = torch.zeros(1, spec.channels, height, width, device=self._classifier.device)
        self._up_to = PartialForward(self._classifier.module, [self._layer], example_NCHW)
        with torch.no_grad():
            return self._up_to(example_NCHW)[self._layer].ndim == 4

    def _output(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = in_format_of(self._classifier.module, x_NCHW)
        with half_on_gpus(x_NCHW.device):
            output = self._up_to(x_NCHW)[self._layer]
        return output.float()

    def _objective(self, redirected: bool, values: Tensor, maps_N23: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        x_NCHW = apply_transforms(self._parameter.to_images(values), maps_N23)
        with RedirectedRelus() if redirected else contextlib.nullcontext():
            output = self._output(x_NCHW)
        # The mean of a map of edges and the like, without a ReLU behind it, is 0 whatever the image: so what lies below
        # 0 counts little. Behind a ReLU this is the mean.
        value_N = functional.leaky_relu(output.index_select(1, which), _BELOW_0).flatten(1).mean(1)
        total = value_N.sum()
        if len(value_N) > 1 and self._options.diversity:
            # In units of the objective: a channel's activations may be of any size.
            total = total - self._options.diversity * value_N.detach().abs().sum() * mean_similarity(output)
        return total, value_N


def mean_similarity(output_NCHW: Tensor) -> Tensor:
    """The mean cosine between the Gram matrices of the layer's output, over all pairs of rows: 1 where all are alike.

    The Gram matrix says which channels go together, wherever they lie: a style. Rows (N, D) are maps of one place.
    """
    features_NCP = output_NCHW.flatten(2) if output_NCHW.ndim == 4 else output_NCHW[:, :, None]
    count, channels, places = features_NCP.shape
    if count * places < channels:
        # <X Xᵀ, Y Yᵀ> = ‖Xᵀ Y‖²: of 1280 channels and 16 places the Gram matrices are a thousand times as large.
        rows_RC = features_NCP.transpose(1, 2).reshape(count * places, channels)
        inner_NN = ((rows_RC @ rows_RC.T) ** 2).view(count, places, count, places).sum((1, 3))
    else:
        gram_ND = torch.bmm(features_NCP, features_NCP.transpose(1, 2)).flatten(1)
        inner_NN = gram_ND @ gram_ND.T
    norm_N = inner_NN.diagonal().clamp_min(_TINY).sqrt()
    cosine_NN = inner_NN / (norm_N[:, None] * norm_N)
    return (cosine_NN.sum() - cosine_NN.diagonal().sum()) / (count * (count - 1))
