"""Octaves of DeepDream: the picture at several sizes, the dream's detail carried from each to the next larger.

DeepDream (Mordvintsev et al. 2015): what a layer sees in a picture, exaggerated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from convlens.errors import RequestError
from convlens.instrument import PartialForward, require_eval
from convlens.models import Classifier
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job
from convlens.synth.images import channels_last, half_on_gpus, read_rgb, resized, to_tensor, to_uint8
from convlens.synth.tiling import tiled_gradient
from convlens.types import Bytes8
from convlens.visualization.layout import hstack

SMALLEST = 48  # pixels: below, networks of stride 32 have a map of one unit
Size = tuple[int, int]


def octave_sizes(size: Size, *, octaves: int, scale: float) -> list[Size]:
    """(height, width) from the smallest to ``size``, each ``scale`` times the one before.

    RequestError for a picture too small for so many, with the largest number that fits.
    """
    found = [_shrunk(size, scale**n) for n in range(octaves)]
    if min(found[-1]) < SMALLEST:
        most = sum(min(_shrunk(size, scale**n)) >= SMALLEST for n in range(octaves))
        what = f"at most {most} octaves fit" if most else f"it should be {SMALLEST} pixels or more each way"
        raise RequestError(
            f"a picture of {size[1]}×{size[0]} is too small for {octaves} octaves of scale {scale:g}: {what}",
            field="octaves",
        )
    return found[::-1]


def resize(x_NCHW: Tensor, size: Size) -> Tensor:
    """Resized bilinearly, smaller without aliasing."""
    if tuple(x_NCHW.shape[2:]) == size:
        return x_NCHW
    return functional.interpolate(x_NCHW, size=size, mode="bilinear", align_corners=False, antialias=True)


def carry_detail(x_NCHW: Tensor, from_NCHW: Tensor, to_NCHW: Tensor) -> Tensor:
    """What was dreamt into ``from``, laid over the larger ``to``."""
    height, width = to_NCHW.shape[2:]
    return to_NCHW + resize(x_NCHW - from_NCHW, (height, width))


def _shrunk(size: Size, by: float) -> Size:
    return round(size[0] / by), round(size[1] / by)


_FRAMES = 2000  # each is kept until the end
_GUIDE = 224  # pixels of the guide's longer side


@job("dream")
@dataclass(frozen=True, kw_only=True)
class Dream(Job):
    """Ascend Σ ½‖a‖² of ``layers`` in ``picture``, of any size: the gradient at a layer is set equal to its activation.

    ``strengths`` weigh the layers, all 1 by default. With ``guide``, another picture's path, each place of the layer
    grows like that place of the guide's which it resembles most. ``steps`` are made at each of ``octaves`` sizes,
    ``octave_scale`` apart; a step moves pixels by ``rate`` of 255 on average, after the picture was rolled by up to
    ``jitter`` pixels. Pictures larger than ``tile`` go through the network in tiles that see ``overlap`` pixels more
    each way. ``side`` resizes the picture's longer side first. ``frames`` pictures follow for a video, each the one
    before enlarged by ``zoom`` about the middle and dreamt on for ``frame_steps``. Defaults of octaves, rate and jitter
    are those of the authors' notebook, which makes 10 steps; 20 raise the default model's layers threefold.
    """

    picture: str
    layers: tuple[str, ...] = ("blocks.4.2",)
    strengths: tuple[float, ...] = ()
    guide: str = ""
    octaves: int = 4
    octave_scale: float = 1.4
    steps: int = 20
    rate: float = 1.5
    jitter: int = 32
    tile: int = 512
    overlap: int = 96
    side: int | None = None
    frames: int = 0
    zoom: float = 1.02
    frame_steps: int = 2

    def __post_init__(self) -> None:
        if not self.layers:
            raise RequestError("dream needs a layer or several", field="layers")
        if self.strengths and len(self.strengths) != len(self.layers):
            raise RequestError(f"{len(self.layers)} layers need as many strengths", field="strengths")
        ones, noughts = ("octaves", "steps", "frame_steps"), ("jitter", "frames", "overlap")
        for name, least in [*((name, 1) for name in ones), *((name, 0) for name in noughts)]:
            if getattr(self, name) < least:
                raise RequestError(f"{name} should be {least} or more, not {getattr(self, name)}", field=name)
        if self.frames > _FRAMES:
            raise RequestError(f"frames should be at most {_FRAMES}, not {self.frames}", field="frames")
        if not self.rate > 0:
            raise RequestError(f"rate should be above 0, not {self.rate}", field="rate")
        for name, number in (("octave_scale", self.octave_scale), ("zoom", self.zoom)):
            if not 1 < number <= 4:
                raise RequestError(f"{name} should be above 1 and at most 4, not {number}", field=name)
        for name, given in (("side", self.side), ("tile", self.tile)):
            if given is not None and given < SMALLEST:
                raise RequestError(f"{name} should be {SMALLEST} or more, not {given}", field=name)

    def inputs(self) -> tuple[str, ...]:
        return (self.picture, self.guide) if self.guide else (self.picture,)

    def begin(self, classifier: Classifier | None) -> DreamRun:
        if classifier is None:
            raise RequestError("dream needs a model", field="model")
        return DreamRun(self, classifier)


class DreamRun(SynthesisRun):
    """A dream under way."""

    blame = ("rate", "strengths")

    def __init__(self, job: Dream, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._job, self._classifier = job, classifier
        picture = _at_side(read_rgb(job.picture, field="picture"), job.side)
        height, width = picture.shape[:2]
        self._sizes = octave_sizes((height, width), octaves=job.octaves, scale=job.octave_scale)
        self._picture = to_tensor(picture, classifier.spec, classifier.device)
        self._up_to = PartialForward(classifier.module, job.layers, resize(self._picture, self._sizes[0]))
        self._strengths = dict(zip(job.layers, job.strengths or (1.0,) * len(job.layers), strict=True))
        self._guides = self._guide_features() if job.guide else {}
        self._generator = torch.Generator().manual_seed(job.seed)
        given = (classifier.spec.mean, classifier.spec.std)
        mean, std = (torch.tensor(each, device=classifier.device)[:, None, None] for each in given)
        self._low, self._high = -mean / std, (1 - mean) / std
        self._unit = 1 / (255 * float(std.mean()))
        self._x = resize(self._picture, self._sizes[0])
        self._frames: list[Bytes8] = []
        self.total = job.octaves * job.steps + job.frames * job.frame_steps

    def step(self) -> Mapping[str, Tensor | float]:
        self._x = self._place()
        reach = self._job.jitter
        shift: list[int] = torch.randint(-reach, reach + 1, (2,), generator=self._generator).tolist()
        rolled = torch.roll(self._x, shift, (2, 3))
        self._energy = torch.zeros((), device=rolled.device)
        grad = tiled_gradient(rolled, self._gradient, tile=self._job.tile, overlap=self._job.overlap)
        grad = torch.roll(grad, [-n for n in shift], (2, 3))
        change = grad / grad.abs().mean().clamp_min(torch.finfo(grad.dtype).tiny) * (self._job.rate * self._unit)
        self._x = torch.maximum(torch.minimum(self._x + change, self._high), self._low)
        self.done += 1
        if self._in_frames and (self.done - self._dreamt) % self._job.frame_steps == 0:
            self._frames += to_uint8(self._x, self._classifier.spec)
        return {"objective": self._energy / rolled[0, 0].numel()}

    def state_dict(self) -> State:
        return {
            "x": self._x,
            "generator": self._generator.get_state(),
            "done": self.done,
            "frames": [torch.from_numpy(frame) for frame in self._frames],
        }

    def load_state_dict(self, state: State) -> None:
        self._x = state["x"].to(self._classifier.device)
        self._generator.set_state(state["generator"])
        self.done = state["done"]
        self._frames = [frame.numpy() for frame in state["frames"]]

    def snapshot(self) -> Bytes8:
        return to_uint8(self._x, self._classifier.spec)[0]

    def finish(self) -> Outcome:
        (found,) = to_uint8(self._x, self._classifier.spec)
        (before,) = to_uint8(self._picture, self._classifier.spec)
        dreamt = self._frames[0] if self._frames else found
        energy = {}
        for name, picture in (("before", before), ("after", dreamt)):
            x = to_tensor(picture, self._classifier.spec, self._classifier.device)
            energy[name] = self._energy_of(x)
        facts: dict[str, Any] = {
            "energy_before": energy["before"],
            "energy_after": energy["after"],
            "energy_ratio": energy["after"] / max(energy["before"], 1e-30),
            "octaves": [list(size) for size in self._sizes],
        }
        return Outcome(
            {"dream": found},
            {"before-and-after": hstack([before, found], gap=8)},
            facts,
            frames=tuple(self._frames),
        )

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _dreamt(self) -> int:
        """Steps before the frames begin."""
        return self._job.octaves * self._job.steps

    @property
    def _in_frames(self) -> bool:
        return self.done > self._dreamt

    def _place(self) -> Tensor:
        """Where the next step begins: at the start of an octave or a frame, elsewhere than the last one ended."""
        if 0 < self.done < self._dreamt and self.done % self._job.steps == 0:
            octave = self.done // self._job.steps
            before, now = (resize(self._picture, self._sizes[n]) for n in (octave - 1, octave))
            return carry_detail(self._x, before, now)
        if self.done >= self._dreamt and (self.done - self._dreamt) % self._job.frame_steps == 0:
            return _zoomed(self._x, self._job.zoom)
        return self._x

    def _gradient(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = channels_last(x_NCHW.detach()).requires_grad_()
        with torch.enable_grad():
            total = self._objective(x_NCHW)
        (grad,) = torch.autograd.grad(total, x_NCHW)
        self._energy = self._energy + total.detach()
        return grad

    def _objective(self, x_NCHW: Tensor) -> Tensor:
        parts = []
        with half_on_gpus(x_NCHW.device):
            found = self._up_to(x_NCHW)
        for name, out in ((name, out.float()) for name, out in found.items()):
            if name in self._guides:
                values = out.flatten(2)[0]
                like = (self._guides[name].T @ values.detach()).argmax(0)
                parts.append(self._strengths[name] * (values * self._guides[name][:, like]).sum())
            else:
                parts.append(self._strengths[name] * (out**2).sum() / 2)
        return torch.stack(parts).sum()

    def _energy_of(self, x_NCHW: Tensor) -> float:
        """Mean ½a² over all units of the layers, by their strengths."""
        with torch.no_grad():
            found = self._up_to(x_NCHW)
        return float(sum(self._strengths[name] * (out**2).mean() / 2 for name, out in found.items()))

    def _guide_features(self) -> dict[str, Tensor]:
        """Of each layer the guide's vectors (C, places)."""
        picture = _at_side(read_rgb(self._job.guide, field="guide"), _GUIDE)
        guide = to_tensor(picture, self._classifier.spec, self._classifier.device)
        with torch.no_grad():
            return {name: out.flatten(2)[0] for name, out in self._up_to(guide).items()}


def _at_side(picture_HWC: Bytes8, side: int | None) -> Bytes8:
    height, width = picture_HWC.shape[:2]
    if side is None:
        return picture_HWC
    longer = max(height, width)
    return resized(picture_HWC, (max(1, round(height * side / longer)), max(1, round(width * side / longer))))


def _zoomed(x_NCHW: Tensor, zoom: float) -> Tensor:
    """The middle of the picture, enlarged to its size."""
    height, width = x_NCHW.shape[2:]
    large = resize(x_NCHW, (round(height * zoom), round(width * zoom)))
    top, left = (large.shape[2] - height) // 2, (large.shape[3] - width) // 2
    return large[:, :, top : top + height, left : left + width].contiguous()
