"""Gram matrices of a layer's features, and how far two pictures' lie apart (Gatys et al. 2015, arXiv:1505.07376)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def gram(features_NCHW: Tensor) -> Tensor:
    """G = F Fᵀ / M of each row (N, C, C): M places, so that pictures of different sizes can be compared."""
    count, channels, height, width = features_NCHW.shape
    if features_NCHW.is_contiguous(memory_format=torch.channels_last):  # as the numbers lie, without a copy
        places = features_NCHW.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        return places.transpose(1, 2) @ places / (height * width)
    flat = features_NCHW.flatten(2)
    return flat @ flat.transpose(1, 2) / (height * width)


class GramLoss:
    """Mean over layers of mean (G − G₀)² / mean G₀²: 0 at the source, about 1 where there is nothing in common."""

    def __init__(self, source: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        self._wanted = {layer: gram(features).detach() for layer, features in source.items()}
        self._weights = weights

    def __call__(self, found: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for layer, wanted in self._wanted.items():
            apart = ((gram(found[layer]) - wanted) ** 2).mean() / (wanted**2).mean().clamp_min(1e-30)
            parts.append(self._weights[layer] * apart)
        return torch.stack(parts).sum() / sum(self._weights.values())
