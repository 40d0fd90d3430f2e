"""Images of a run: read from files, turned to 8 bits, and classified by the network."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convlens import image
from convlens.errors import RequestError
from convlens.explain.scores import probabilities
from convlens.instrument import in_format_of
from convlens.models import Classifier
from convlens.runtime.memory import is_out_of_memory
from convlens.types import Bytes8, ModelSpec
from convlens.visualization.layout import enlarge, hstack, text_image, vstack

_GAP, _COLUMNS = 8, 6  # of a contact sheet
_LEAST_SIDE = 288  # pixels, about, of images beside each other
_SIZE_ERRORS = (RuntimeError, ValueError, AssertionError)  # what networks raise for images that they do not fit
Ranking = list[tuple[int, str, float, float]]
"""Every class as (index, label, probability, logit), the most probable first."""


def read_rgb(path: str, *, field: str) -> Bytes8:
    """An image file, upright (H, W, 3). RequestError that names the job's option where there is none."""
    if not Path(path).is_file():
        raise RequestError(f"{field}: no picture {path}", field=field)
    return np.asarray(image.read(path).convert("RGB"))


def resized(image_HWC: Bytes8, size: tuple[int, int]) -> Bytes8:
    """Resized to (height, width), by Lanczos."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def center_square(image_HWC: Bytes8, side: int) -> Bytes8:
    """The middle of an image that is resized so that its shorter side is ``side``."""
    height, width = image_HWC.shape[:2]
    scale = side / min(height, width)
    scaled = resized(image_HWC, (max(side, round(height * scale)), max(side, round(width * scale))))
    top, left = (scaled.shape[0] - side) // 2, (scaled.shape[1] - side) // 2
    return scaled[top : top + side, left : left + side]


def require_texture(image_HWC: Bytes8) -> None:
    """RequestError for an image of one colour, in which there is no texture."""
    if (image_HWC == image_HWC[0, 0]).all():
        raise RequestError("the source is of one colour: there is no texture in it; choose another", field="source")


def to_tensor(image_HWC: Bytes8, spec: ModelSpec, device: torch.device) -> Tensor:
    """The network's normalised input (1, C, H, W) of an RGB image: its grey for a network of one channel.

    RequestError for a network of another number of channels, which no RGB image fills.
    """
    if image_HWC.shape[2] != spec.channels and spec.channels == 1:
        image_HWC = np.asarray(Image.fromarray(image_HWC).convert("L"))[:, :, None]
    if image_HWC.shape[2] != spec.channels:
        raise RequestError(
            f"{spec.name} takes {spec.channels} channels, and this job reads RGB images; ascent of a class or a layer "
            "makes images of any number of channels",
            field="model",
        )
    return torch.from_numpy(image.normalise(image_HWC, spec))[None].to(device)


def rounded_to_8_bits(x_NCHW: Tensor, spec: ModelSpec) -> list[Tensor]:
    """Each row as its 8-bit image would come back to the network (1, C, H, W), of any number of channels."""
    return [torch.from_numpy(image.normalise(row, spec))[None].to(x_NCHW) for row in to_uint8(x_NCHW, spec)]


def to_uint8(x_NCHW: Tensor, spec: ModelSpec) -> list[Bytes8]:
    """Each row (H, W, C) rounded and clipped to black and white; values that are not finite become 0."""
    rows = torch.nan_to_num(x_NCHW.detach().float(), 0.0, 0.0, 0.0).cpu().numpy()
    return [image.denormalise(row, spec) for row in rows]


def shown(images: Sequence[Bytes8], spec: ModelSpec) -> list[Bytes8]:
    """Images in the network's channels as they are shown (H, W, 3); RGB images stay as they are."""
    return [image_HWC if image_HWC.shape[2] == 3 else image.displayed(image_HWC, spec) for image_HWC in images]


def black_and_white(spec: ModelSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """The normalised values (C, 1, 1) of black and of white: the range that an image can hold."""
    mean_C11, std_C11 = (torch.tensor(values, device=device)[:, None, None] for values in (spec.mean, spec.std))
    return -mean_C11 / std_C11, (1 - mean_C11) / std_C11


def half_on_gpus(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 where a GPU multiplies matrices; float32 on CPUs, where it is no faster for networks of this size."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def takes_size(classifier: Classifier, size: tuple[int, int]) -> bool:
    """Whether the whole network runs on images of that height and width: a flattened head fits one size only."""
    if size == classifier.spec.input_size:
        return True
    x_NCHW = torch.zeros(1, classifier.spec.channels, *size, device=classifier.device)
    try:
        with torch.no_grad():
            classifier.module(in_format_of(classifier.module, x_NCHW))
    except _SIZE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def rank_classes(classifier: Classifier, x_1CHW: Tensor) -> Ranking:
    """All classes by their logit for one normalised input; none of a network without classes."""
    labels = classifier.spec.labels
    if not labels:
        return []
    with torch.no_grad():
        logits_1K = classifier.module(x_1CHW).double().cpu()
    (logits_K,), (probability_K,) = logits_1K, probabilities(logits_1K, classifier.spec.activation)
    # stable: equal logits keep the order of the classes, on every machine
    order = logits_K.argsort(descending=True, stable=True).tolist()
    return [(k, labels[k], float(probability_K[k]), float(logits_K[k])) for k in order]


def top_classes(ranking: Ranking, count: int = 5) -> list[dict[str, Any]]:
    """The first few as plain JSON values."""
    return [{"index": k, "label": label, "probability": p, "logit": s} for k, label, p, s in ranking[:count]]


def beside(images: Sequence[Bytes8], captions: Sequence[str]) -> Bytes8:
    """Images beside each other, each above its caption; all enlarged alike, by whole squares, where they are small."""
    factor = max(1, _LEAST_SIDE // max(max(image_HWC.shape[:2]) for image_HWC in images))
    tiles = [
        vstack([large_HWC, text_image(caption, size=13, width=large_HWC.shape[1])], gap=4)
        for large_HWC, caption in zip((enlarge(image_HWC, factor) for image_HWC in images), captions, strict=True)
    ]
    return hstack(tiles, gap=8)


def contact_sheet(images: Sequence[Bytes8], captions: Sequence[str]) -> Bytes8:
    """Images in rows, each above its caption."""
    tiles = [
        vstack([image_HWC, text_image(caption, size=13, width=image_HWC.shape[1])], gap=4)
        for image_HWC, caption in zip(images, captions, strict=True)
    ]
    rows = [hstack(tiles[first : first + _COLUMNS], gap=_GAP) for first in range(0, len(tiles), _COLUMNS)]
    return vstack(rows, gap=_GAP)
