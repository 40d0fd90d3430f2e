"""DeepDream (Mordvintsev et al. 2015, the authors' notebook): what a layer sees in an image, exaggerated.

The dream grows in octaves, from a small size of the image to its own; the detail drawn at each is carried to the next.
Images too large to pass through the network at once go tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from convlens.errors import RequestError
from convlens.instrument import PartialForward, in_format_of, require_eval
from convlens.models import Classifier
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job, require_at_least, require_positive
from convlens.synth.images import beside, black_and_white, half_on_gpus, read_rgb, resized, shown, to_tensor, to_uint8
from convlens.synth.regularisers import sample_jitter
from convlens.synth.step_gradient import StepGradient
from convlens.synth.trunk import dream_layers
from convlens.types import Bytes8

# Tiles begin at multiples of it, so that units of strided layers see the same pixels as in the whole image.
GRID = 32


@dataclass(frozen=True)
class Tile:
    """Begin and end along one axis: the network sees ``context``, of which the tile fills in ``core``."""

    context: tuple[int, int]
    core: tuple[int, int]


def tiles_along(length: int, *, tile: int, overlap: int) -> list[Tile]:
    """Tiles whose cores cover ``length`` pixels once, each with a context of ``overlap`` pixels or more either way.

    RequestError where a tile has no room for that.
    """
    margin = -(-overlap // GRID) * GRID
    room = tile // GRID * GRID - 2 * margin
    if length <= tile:
        return [Tile((0, length), (0, length))]
    if room < GRID:
        raise RequestError(
            f"tiles of {tile} pixels have no room for {overlap} more on each side; they need {2 * margin + GRID}",
            field="tile",
        )
    return [
        Tile((max(0, start - margin), min(length, start + room + margin)), (start, min(length, start + room)))
        for start in range(0, length, room)
    ]


def tiled_gradient(x_NCHW: Tensor, gradient: Callable[[Tensor], Tensor], *, tile: int, overlap: int) -> Tensor:
    """``gradient`` of the whole image, computed in tiles.

    Exact where no pixel's gradient depends on others further than ``overlap`` away: where that is a unit's receptive
    field, in a network without global pooling.
    """
    result = torch.empty_like(x_NCHW)
    for rows, columns in _grid(x_NCHW, tile, overlap):
        inner = gradient(x_NCHW[:, :, slice(*rows.context), slice(*columns.context)])
        top, left = rows.core[0] - rows.context[0], columns.core[0] - columns.context[0]
        height, width = rows.core[1] - rows.core[0], columns.core[1] - columns.core[0]
        result[:, :, slice(*rows.core), slice(*columns.core)] = inner[:, :, top : top + height, left : left + width]
    return result


def _grid(x_NCHW: Tensor, tile: int, overlap: int) -> Iterator[tuple[Tile, Tile]]:
    for rows in tiles_along(x_NCHW.shape[2], tile=tile, overlap=overlap):
        for columns in tiles_along(x_NCHW.shape[3], tile=tile, overlap=overlap):
            yield rows, columns


Size = tuple[int, int]  # height, width


_MIN_SIDE = 48  # pixels: below, networks of stride 32 have a map of one unit


_MAX_FRAMES = 2000  # all are kept in memory until the end


_GUIDE_SIDE = 224  # pixels of the guide's longer side


@job("dream")
@dataclass(frozen=True, kw_only=True)
class Dream(Job):
    """Ascend Σ ½‖a‖² of ``layers`` in ``picture``, of any size: the gradient at a layer is set equal to its activation.

    Without ``layers`` it is the last one before the network's coarsest resolution (``trunk.dream_layers``).
    ``strengths`` weigh the layers, all 1 by default. With ``guide``, the path of another image, each place of the layer
    ascends towards the place of the guide's that resembles it most. ``steps`` are made at each of ``octaves`` sizes,
    ``octave_scale`` apart; a step moves pixels by ``rate`` of 255 on average, on an image rolled by up to ``jitter``
    pixels. Images larger than ``tile`` pass through the network in tiles that see ``overlap`` pixels more each way.
    ``side`` resizes the longer side first. ``frames`` images follow for a video, each the last one enlarged by ``zoom``
    about the middle, then ``frame_steps`` steps. Defaults of octaves, rate and jitter are those of the authors'
    notebook.
    """

    picture: str
    layers: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()
    guide: str = ""
    octaves: int = 4
    octave_scale: float = 1.4
    steps: int = 20  # the notebook makes 10; 20 raise the activation energy of the default layer threefold
    rate: float = 1.5
    jitter: int = 32
    tile: int = 512
    overlap: int = 96
    side: int | None = None
    frames: int = 0
    zoom: float = 1.02
    frame_steps: int = 2

    def __post_init__(self) -> None:
        if self.strengths and not self.layers:
            raise RequestError("strengths weigh layers; name those", field="layers")
        if self.strengths and len(self.strengths) != len(self.layers):
            raise RequestError(f"{len(self.layers)} layers need as many strengths", field="strengths")
        require_at_least(1, self, "octaves", "steps", "frame_steps")
        require_at_least(0, self, "jitter", "frames", "overlap")
        if self.frames > _MAX_FRAMES:
            raise RequestError(f"frames should be at most {_MAX_FRAMES}, not {self.frames}", field="frames")
        require_positive(self, "rate")
        for name, number in (("octave_scale", self.octave_scale), ("zoom", self.zoom)):
            if not 1 < number <= 4:
                raise RequestError(f"{name} should be above 1 and at most 4, not {number}", field=name)
        require_at_least(_MIN_SIDE, self, "tile", *(("side",) if self.side is not None else ()))

    def inputs(self) -> tuple[str, ...]:
        return (self.picture, self.guide) if self.guide else (self.picture,)

    def resolved(self, classifier: Classifier | None) -> Dream:
        return self if self.layers else replace(self, layers=dream_layers(self.require_model(classifier)))

    def begin(self, classifier: Classifier | None) -> DreamRun:
        return DreamRun(self.resolved(classifier), self.require_model(classifier))


class DreamRun(SynthesisRun):
    """Octave after octave, then frame after frame."""

    blame = ("rate", "strengths")

    def __init__(self, job: Dream, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._job, self._classifier = job, classifier
        original_HWC = _with_longer_side(read_rgb(job.picture, field="picture"), job.side)
        height, width = original_HWC.shape[:2]
        self._sizes = octave_sizes((height, width), octaves=job.octaves, scale=job.octave_scale)
        self._original = to_tensor(original_HWC, classifier.spec, classifier.device)
        self._x = resize(self._original, self._sizes[0])
        self._up_to = PartialForward(classifier.module, job.layers, self._x)
        self._strengths = dict(zip(job.layers, job.strengths or (1.0,) * len(job.layers), strict=True))
        self._guides = self._guide_features() if job.guide else {}
        self._step_gradient = StepGradient(self._objective)
        self._generator = torch.Generator().manual_seed(job.seed)
        self._black, self._white = black_and_white(classifier.spec, classifier.device)
        mean_std = float(torch.tensor(classifier.spec.std, device=classifier.device).mean())
        self._level = 1 / (255 * mean_std)  # in normalised units
        self._octave_steps = job.octaves * job.steps
        self._frames: list[Bytes8] = []
        self.total = self._octave_steps + job.frames * job.frame_steps

    def step(self) -> Mapping[str, Tensor | float]:
        self._x = self._step_start()
        # Jitter also moves the borders of tiles to another place of the image at each step.
        shift = sample_jitter(self._job.jitter, self._generator)
        rolled = torch.roll(self._x, shift, (2, 3))
        self._energy = torch.zeros((), device=rolled.device)
        grad = tiled_gradient(rolled, self._gradient, tile=self._job.tile, overlap=self._job.overlap)
        grad = torch.roll(grad, [-n for n in shift], (2, 3))
        # g / mean |g|, as in the notebook: the step is the same however strong a layer's gradient is.
        change = grad / grad.abs().mean().clamp_min(torch.finfo(grad.dtype).tiny) * (self._job.rate * self._level)
        self._x = torch.clamp(self._x + change, self._black, self._white)
        self.done += 1
        if self.done > self._octave_steps and (self.done - self._octave_steps) % self._job.frame_steps == 0:
            self._frames.append(self._shown(self._x))
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
        return self._shown(self._x)

    def _shown(self, x_1CHW: Tensor) -> Bytes8:
        spec = self._classifier.spec
        return shown(to_uint8(x_1CHW, spec), spec)[0]

    def finish(self) -> Outcome:
        """The last image, and the layers' energy before and after (of the first frame, where there are frames)."""
        result = self.snapshot()
        before = self._shown(self._original)
        energy_before, energy_after = (
            self._mean_energy(to_tensor(image_HWC, self._classifier.spec, self._classifier.device))
            for image_HWC in (before, self._frames[0] if self._frames else result)
        )
        facts: dict[str, Any] = {
            "energy_before": energy_before,
            "energy_after": energy_after,
            "energy_ratio": energy_after / max(energy_before, 1e-30),
            "octaves": [list(size) for size in self._sizes],
        }
        captions = ["before", f"after: {', '.join(self._job.layers)}"]
        figures = {"before-and-after": beside([before, result], captions)}
        return Outcome({"dream": result}, figures, facts, frames=tuple(self._frames))

    def _step_start(self) -> Tensor:
        """Where the next step begins: at a new octave or frame not where the last step ended."""
        if 0 < self.done < self._octave_steps and self.done % self._job.steps == 0:
            octave = self.done // self._job.steps
            before, now = (resize(self._original, self._sizes[n]) for n in (octave - 1, octave))
            return carry_detail(self._x, before, now)
        if self.done >= self._octave_steps and (self.done - self._octave_steps) % self._job.frame_steps == 0:
            return _zoomed(self._x, self._job.zoom)
        return self._x

    def _gradient(self, x_NCHW: Tensor) -> Tensor:
        total, _, grad = self._step_gradient(in_format_of(self._classifier.module, x_NCHW))
        self._energy = self._energy + total
        return grad

    def _objective(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        with half_on_gpus(x_NCHW.device):
            outputs = self._up_to(x_NCHW)
        for name, output in outputs.items():
            output = output.float()
            if name in self._guides:
                features_CP, guide_CP = output.flatten(2)[0], self._guides[name]
                # Each place takes the guide's vector of the largest scalar product with its own.
                nearest_P = (guide_CP.T @ features_CP.detach()).argmax(0)
                parts.append(self._strengths[name] * (features_CP * guide_CP[:, nearest_P]).sum())
            else:
                parts.append(self._strengths[name] * (output**2).sum() / 2)
        total = torch.stack(parts).sum()
        return total, total

    def _mean_energy(self, x_NCHW: Tensor) -> float:
        """Mean ½a² over all units of each layer, weighted by the strengths."""
        with torch.no_grad():
            outputs = self._up_to(x_NCHW)
        return float(sum(self._strengths[name] * (output**2).mean() / 2 for name, output in outputs.items()))

    def _guide_features(self) -> dict[str, Tensor]:
        """The guide's feature vectors (C, places) of each layer."""
        guide_HWC = _with_longer_side(read_rgb(self._job.guide, field="guide"), _GUIDE_SIDE)
        guide = to_tensor(guide_HWC, self._classifier.spec, self._classifier.device)
        with torch.no_grad():
            return {name: output.flatten(2)[0] for name, output in self._up_to(guide).items()}


def octave_sizes(size: Size, *, octaves: int, scale: float) -> list[Size]:
    """Sizes from the smallest to ``size``, each ``scale`` times the one before.

    RequestError for an image too small for so many octaves, with the largest number that fits.
    """
    sizes = [_shrunk(size, scale**n) for n in range(octaves)]
    if min(sizes[-1]) < _MIN_SIDE:
        most = sum(min(_shrunk(size, scale**n)) >= _MIN_SIDE for n in range(octaves))
        remedy = f"at most {most} octaves fit" if most else f"it should be {_MIN_SIDE} pixels or more each way"
        raise RequestError(
            f"a picture of {size[1]}×{size[0]} is too small for {octaves} octaves of scale {scale:g}: {remedy}",
            field="octaves",
        )
    return sizes[::-1]


def resize(x_NCHW: Tensor, size: Size) -> Tensor:
    """Resized bilinearly, antialiased where it shrinks."""
    if tuple(x_NCHW.shape[2:]) == size:
        return x_NCHW
    return functional.interpolate(x_NCHW, size=size, mode="bilinear", align_corners=False, antialias=True)


def carry_detail(x_NCHW: Tensor, from_NCHW: Tensor, to_NCHW: Tensor) -> Tensor:
    """The larger original ``to`` with what was drawn into the smaller original ``from``.

    Enlarging ``x`` itself would lose the detail that shrinking the original lost.
    """
    height, width = to_NCHW.shape[2:]
    return to_NCHW + resize(x_NCHW - from_NCHW, (height, width))


def _shrunk(size: Size, factor: float) -> Size:
    return round(size[0] / factor), round(size[1] / factor)


def _with_longer_side(image_HWC: Bytes8, side: int | None) -> Bytes8:
    if side is None:
        return image_HWC
    height, width = image_HWC.shape[:2]
    longer = max(height, width)
    return resized(image_HWC, (max(1, round(height * side / longer)), max(1, round(width * side / longer))))


def _zoomed(x_NCHW: Tensor, zoom: float) -> Tensor:
    """The middle of the image, enlarged to its size."""
    height, width = x_NCHW.shape[2:]
    large = resize(x_NCHW, (round(height * zoom), round(width * zoom)))
    top, left = (large.shape[2] - height) // 2, (large.shape[3] - width) // 2
    return large[:, :, top : top + height, left : left + width].contiguous()
