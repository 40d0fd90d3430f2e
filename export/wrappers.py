"""What is exported: a small module around the network for each kind of graph.

Inputs and outputs of graphs are float32, whatever the network's own precision is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convlens.instrument import Tap
from convlens.runtime.torch_runtime import pooled
from convlens.types import ModelSpec


class Scores(nn.Module):
    """Logits (N, K) of normalised images (N, C, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._dtype = next(network.parameters()).dtype

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.network(x_NCHW.to(self._dtype))
        return logits_NK.float()


class Features(nn.Module):
    """The outputs of several layers in one pass, in the order given."""

    def __init__(self, tap: Tap, layers: Sequence[str]) -> None:
        super().__init__()
        self.scores, self._tap, self._layers = Scores(tap.module), tap, tuple(layers)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, ...]:
        self.scores(x_NCHW)
        return tuple(self._tap.outputs[layer].float() for layer in self._layers)


class Embedding(nn.Module):
    """The layer's input, averaged over space, and the logits: for neighbours and predictions in one pass."""

    def __init__(self, tap: Tap, layer: str) -> None:
        super().__init__()
        self.scores, self._tap, self._layer = Scores(tap.module), tap, layer

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK: Tensor = self.scores(x_NCHW)
        return pooled(self._tap.inputs[self._layer].float()), logits_NK


class OccludedScores(nn.Module):
    """The target's logit, and logsumexp over all classes, of one image with each of B windows filled.

    ``top_B`` and ``left_B`` are the windows' corners; ``fill`` is in normalised units. This is the body of the loop
    that an occlusion graph runs over all its windows, so no occluded copy ever crosses from the host.
    """

    def __init__(self, network: nn.Module, window: int) -> None:
        super().__init__()
        self.scores, self._window = Scores(network), window

    def forward(
        self, x_NCHW: Tensor, target: Tensor, fill: Tensor, top_B: Tensor, left_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows_BH = self._covers(top_B, x_NCHW.shape[2])
        columns_BW = self._covers(left_B, x_NCHW.shape[3])
        occluded_B1HW = (rows_BH[:, :, None] & columns_BW[:, None, :])[:, None]
        logits_BK: Tensor = self.scores(torch.where(occluded_B1HW, fill, x_NCHW))
        score_B = logits_BK.index_select(1, target.reshape(1))[:, 0]
        return score_B, logits_BK.logsumexp(1)

    def _covers(self, start_B: Tensor, length: int) -> Tensor:
        pixels_L = torch.arange(length, device=start_B.device)
        return (pixels_L >= start_B[:, None]) & (pixels_L < start_B[:, None] + self._window)


class WithPreprocessing(nn.Module):
    """Takes uint8 images (N, H, W, C), already resized and cropped, and normalises them as ``image.normalise``."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, inner: nn.Module, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        self.inner = inner  # not `graph`, which torch's exporter has for itself
        self.register_buffer("mean_C11", torch.tensor(spec.mean, device=device)[:, None, None])
        self.register_buffer("std_C11", torch.tensor(spec.std, device=device)[:, None, None])

    def forward(self, picture_NHWC: Tensor, *rest: Tensor) -> Tensor | tuple[Tensor, ...]:
        x_NCHW = picture_NHWC.permute(0, 3, 1, 2).float() / 255.0
        outputs: Tensor | tuple[Tensor, ...] = self.inner((x_NCHW - self.mean_C11) / self.std_C11, *rest)
        return outputs
