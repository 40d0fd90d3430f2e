"""Pictures of a work: from files, to 8 bits, and what the network says of them then."""

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
from convlens.models import Classifier
from convlens.types import Bytes8, ModelSpec
from convlens.visualization.layout import hstack, text_image, vstack

_GAP, _MOST_ABREAST = 8, 6


def read_rgb(path: str, *, field: str) -> Bytes8:
    """A picture file, upright (H, W, 3). RequestError that names the job's option where there is none."""
    if not Path(path).is_file():
        raise RequestError(f"{field}: no picture {path}", field=field)
    return np.asarray(image.read(path).convert("RGB"))


def resized(picture_HWC: Bytes8, size: tuple[int, int]) -> Bytes8:
    """To (height, width), by Lanczos."""
    if picture_HWC.shape[:2] == size:
        return picture_HWC
    found = Image.fromarray(picture_HWC).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(found)


def middle_square(picture_HWC: Bytes8, side: int) -> Bytes8:
    """The middle of a picture, resized so that its shorter side is ``side``; RequestError for an empty one."""
    height, width = picture_HWC.shape[:2]
    scale = side / min(height, width)
    found = resized(picture_HWC, (max(side, round(height * scale)), max(side, round(width * scale))))
    top, left = (found.shape[0] - side) // 2, (found.shape[1] - side) // 2
    return found[top : top + side, left : left + side]


def require_texture(picture_HWC: Bytes8) -> None:
    """RequestError for a picture of one colour: there is no texture in it."""
    if (picture_HWC == picture_HWC[0, 0]).all():
        raise RequestError("the source is of one colour: there is no texture in it; choose another", field="source")


def to_tensor(picture_HWC: Bytes8, spec: ModelSpec, device: torch.device) -> Tensor:
    """As the network takes it (1, 3, H, W)."""
    return torch.from_numpy(image.normalise(picture_HWC, spec))[None].to(device)


def channels_last(x_NCHW: Tensor) -> Tensor:
    """The same numbers, channels next to each other: networks are up to a third faster so, none was slower."""
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def half_on_gpus(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 where a GPU multiplies matrices; float32 on CPUs, where it is no faster for networks of this size."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def to_uint8(x_NCHW: Tensor, spec: ModelSpec) -> list[Bytes8]:
    """Each row as RGB, rounded and cut at black and white; values that are not finite become 0."""
    rows = torch.nan_to_num(x_NCHW.detach().float(), 0.0, 0.0, 0.0).cpu().numpy()
    return [image.denormalise(row, spec) for row in rows]


def rank_classes(classifier: Classifier, pictures: Sequence[Bytes8]) -> list[list[tuple[int, str, float, float]]]:
    """What the network says of each picture: every class as (index, label, probability, logit), the likeliest first.

    Pictures are taken as they are, not resized: all of one size.
    """
    labels = classifier.spec.labels
    found = []
    for picture in pictures:
        with torch.no_grad():
            (logits_K,) = classifier.module(to_tensor(picture, classifier.spec, classifier.device)).double().cpu()
        probability_K = logits_K.softmax(0)
        order = logits_K.argsort(descending=True, stable=True).tolist()
        found.append([(k, labels[k], float(probability_K[k]), float(logits_K[k])) for k in order])
    return found


def top_classes(ranking: Sequence[tuple[int, str, float, float]], count: int = 5) -> list[dict[str, Any]]:
    """The first few as plain values."""
    return [{"index": k, "label": label, "probability": p, "logit": s} for k, label, p, s in ranking[:count]]


def contact_sheet(pictures: Sequence[Bytes8], captions: Sequence[str]) -> Bytes8:
    """Pictures in rows, each with its caption below."""
    tiles = [
        vstack([picture, text_image(caption, size=13, width=picture.shape[1])], gap=4)
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    rows = [hstack(tiles[first : first + _MOST_ABREAST], gap=_GAP) for first in range(0, len(tiles), _MOST_ABREAST)]
    return vstack(rows, gap=_GAP)
