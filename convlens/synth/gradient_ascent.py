"""Gradient ascent: the picture that maximises a class, a neuron, a channel or a layer (Simonyan et al. 2013)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.instrument import RedirectedRelus, require_eval
from convlens.models import Classifier, find_class
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job
from convlens.synth.images import contact_sheet, rank_classes, read_rgb, resized, to_tensor, to_uint8, top_classes
from convlens.synth.objectives import BatchObjective, Objective
from convlens.synth.parameters import Pixels, make_parameterization, noise
from convlens.synth.presets import OVERRIDABLE, Settings, settings_of
from convlens.synth.regularisers import clip_small_contribution, clip_small_norm, gaussian_blur, total_variation
from convlens.synth.transforms import RandomTransform, apply_transforms, sample_transforms
from convlens.types import Bytes8, ModelSpec
from convlens.visualization.layout import hstack

_TINY = 1e-30
_AT_ONCE = 4  # rows a forward pass: more do not go faster on a CPU, and take memory


@job("ascent")
@dataclass(frozen=True, kw_only=True)
class Ascent(Job):
    """argmax over I of S(I) − λ‖I‖², several targets in one run.

    ``classes`` by index or label; or of ``layer`` the ``channels`` (each the mean of its map), with ``y`` and ``x`` the
    neurons at that place, without channels the whole layer's energy. ``size`` is the pictures' side in pixels, the
    model's own by default. ``start`` is noise, zeros or a picture's path. All other options are of ``Settings``; None
    takes the preset's value.
    """

    classes: tuple[int | str, ...] = ()
    layer: str = ""
    channels: tuple[int, ...] = ()
    y: int | None = None
    x: int | None = None
    size: int | None = None
    preset: str = "robust"

    steps: int | None = None
    optimizer: str | None = None
    rate: float | None = None
    parameter: str | None = None
    decorrelated: bool | None = None
    start: str | None = None
    start_spread: float | None = None
    jitter: float | None = None
    scale: float | None = None
    rotate: float | None = None
    grain: float | None = None
    settle: float | None = None
    smoothness: float | None = None
    l2: float | None = None
    tv: float | None = None
    decay: float | None = None
    blur: float | None = None
    blur_every: int | None = None
    norm_percentile: float | None = None
    contribution_percentile: float | None = None
    redirect_steps: int | None = None

    def __post_init__(self) -> None:
        if bool(self.classes) == bool(self.layer):
            raise RequestError("ascent needs classes, or a layer; give one of the two", field="classes")
        if self.channels and not self.layer:
            raise RequestError("channels are those of a layer; name it", field="layer")
        if (self.y is None) != (self.x is None):
            raise RequestError("y and x go together: give both or neither", field="y")
        if self.y is not None and not self.channels:
            raise RequestError("y and x place the neurons of channels; name those", field="channels")
        for name, numbers in (("channels", self.channels), ("y", (self.y or 0,)), ("x", (self.x or 0,))):
            if min(numbers, default=0) < 0:
                raise RequestError(f"{name} should be 0 or more, not {min(numbers)}", field=name)
        if self.size is not None and not 16 <= self.size <= 4096:
            raise RequestError(f"size should be from 16 to 4096, not {self.size}", field="size")
        _ = self.settings

    @property
    def settings(self) -> Settings:
        """With the preset's values where none are given."""
        return settings_of(self.preset, {name: getattr(self, name) for name in OVERRIDABLE})

    def objectives(self, spec: ModelSpec) -> list[Objective]:
        """One a picture. TargetError for a class that there is not."""
        if not self.layer:
            indices = [find_class(spec.labels, one) for one in self.classes]
            return [Objective(spec.labels[index], index=index) for index in indices]
        if not self.channels:
            return [Objective(self.layer, self.layer)]
        place = "" if self.y is None else f" at {self.y}, {self.x}"
        return [Objective(f"{self.layer} {n}{place}", self.layer, n, self.y, self.x) for n in self.channels]

    def inputs(self) -> tuple[str, ...]:
        return () if self.settings.start in ("noise", "zeros") else (self.settings.start,)

    def begin(self, classifier: Classifier | None) -> AscentRun:
        if classifier is None:
            raise RequestError("ascent needs a model", field="model")
        return AscentRun(self, classifier)


class AscentRun(SynthesisRun):
    """Ascent under way. ``x_NCHW`` is where it stands."""

    blame = ("rate", "contribution_percentile")

    def __init__(self, job: Ascent, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._classifier, self._settings = classifier, job.settings
        side = job.size or classifier.spec.crop
        self._size = (side, side)
        self.objectives = job.objectives(classifier.spec)
        self._objective = BatchObjective(classifier, self.objectives, self._size)
        self._generator = torch.Generator().manual_seed(job.seed)
        given = self._settings
        self.total = given.steps
        self._movements = RandomTransform(given.jitter, given.scale, given.rotate)
        self._parameter = make_parameterization(
            given.parameter,
            len(self.objectives),
            self._size,
            classifier.spec,
            classifier.device,
            decorrelated=given.decorrelated,
            smoothness=given.smoothness,
        )
        self._begin(given.start)
        self._rate = given.rate * self._unit()
        kind = torch.optim.Adam if given.optimizer == "adam" else torch.optim.SGD
        self._optimizer: Any = kind([self._parameter.values], lr=self._rate, maximize=True)

    @property
    def x_NCHW(self) -> Tensor:
        """The pictures, normalised, as they stand."""
        with torch.no_grad():
            return self._parameter.images().detach().clone()

    def step(self) -> Mapping[str, Tensor | float]:
        values = self._parameter.values
        grad, parts = None, []
        maps_N23 = (
            sample_transforms(self._movements, len(self.objectives), self._size, self._generator)
            if self._movements.any
            else None
        )
        shape = (len(self.objectives), len(self._classifier.spec.mean), *self._size)
        grain = self._grain
        grain_NCHW = noise(shape, self._generator, values.device) * grain if grain else None
        redirected = self.done < self._settings.redirect_steps
        for first in range(0, len(self.objectives), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            with RedirectedRelus() if redirected else contextlib.nullcontext():
                said_N, total = self._total(rows, maps_N23, grain_NCHW)
                (part,) = torch.autograd.grad(total, values)
            grad = part if grad is None else grad.add_(part)
            parts.append(said_N.detach())
        assert grad is not None, "there is at least one goal"
        normalised = self._settings.optimizer == "normalised"
        values.grad = grad / grad.abs().mean((1, 2, 3), keepdim=True).clamp_min(_TINY) if normalised else grad
        self._optimizer.step()
        values.grad = None
        self.done += 1
        if isinstance(self._parameter, Pixels):
            self._regularise(grad)
        said = torch.cat(parts)
        return {"objective": said.mean()} | {goal.name: one for goal, one in zip(self.objectives, said, strict=True)}

    def state_dict(self) -> State:
        return {
            "values": self._parameter.values.detach(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "done": self.done,
        }

    def load_state_dict(self, state: State) -> None:
        with torch.no_grad():
            self._parameter.values.copy_(state["values"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self.done = state["done"]

    def snapshot(self) -> Bytes8:
        return hstack(to_uint8(self.x_NCHW[:6], self._classifier.spec), gap=4)

    def finish(self) -> Outcome:
        pictures = to_uint8(self.x_NCHW, self._classifier.spec)
        rankings = rank_classes(self._classifier, pictures)
        facts, captions = [], []
        for goal, ranking in zip(self.objectives, rankings, strict=True):
            fact: dict[str, Any] = asdict(goal) | {"predicted": top_classes(ranking)}
            caption = goal.name
            if not goal.layer:
                place = next(n for n, entry in enumerate(ranking) if entry[0] == goal.index)
                fact |= {"rank": place, "probability": ranking[place][2], "logit": ranking[place][3]}
                caption = f"{goal.name}: p = {ranking[place][2]:.3f}"
            facts.append(fact)
            captions.append(caption)
        names = _names([goal.name for goal in self.objectives])
        figures = {"sheet": contact_sheet(pictures, captions)} if len(pictures) > 1 else {}
        return Outcome(dict(zip(names, pictures, strict=True)), figures, {"targets": facts, **asdict(self._settings)})

    # --- inside -------------------------------------------------------------------------------------------------

    def _total(self, rows: slice, maps_N23: Tensor | None, grain_NCHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each row's objective, and their sum less the penalties."""
        given = self._settings
        x_NCHW = self._parameter.images(rows)
        shown = x_NCHW if maps_N23 is None else apply_transforms(x_NCHW, maps_N23[rows])
        if grain_NCHW is not None:
            shown = shown + grain_NCHW[rows]
        said_N = self._objective.values(shown, rows)
        total = said_N.sum()
        if given.l2:
            total = total - given.l2 * (x_NCHW**2).sum()
        if given.tv:
            total = total - given.tv * total_variation(x_NCHW).sum()
        return said_N, total

    @property
    def _grain(self) -> float:
        """Of the next step."""
        given = self._settings
        settling = given.settle * self.total
        return given.grain * min(1.0, (self.total - 1 - self.done) / settling) if settling else given.grain

    def _begin(self, start: str) -> None:
        """Noise is drawn in any case, so that the same seed moves pictures the same way from every start."""
        values = self._parameter.values
        drawn_noise = noise(values.shape, self._generator, values.device) * self._settings.start_spread
        if start == "noise":
            with torch.no_grad():
                values.copy_(drawn_noise)
        elif start != "zeros":
            picture = resized(read_rgb(start, field="start"), self._size)
            x_1CHW = to_tensor(picture, self._classifier.spec, self._classifier.device)
            self._parameter.set_images(x_1CHW.expand(len(self.objectives), -1, -1, -1))

    def _unit(self) -> float:
        """Of the rate: a level of 255 is 1 / (255 σ) of ours, and so is a gradient by levels."""
        if self._settings.optimizer == "adam" or not isinstance(self._parameter, Pixels):
            return 1.0
        level = len(self._classifier.spec.std) / (255 * sum(self._classifier.spec.std))
        return level if self._settings.optimizer == "normalised" else level**2

    def _regularise(self, grad: Tensor) -> None:
        """In Yosinski's order."""
        given, values = self._settings, self._parameter.values
        with torch.no_grad():
            x_NCHW = values.detach()
            if given.decay:
                x_NCHW = x_NCHW * (1 - given.decay)
            if given.blur and self.done % given.blur_every == 0:
                x_NCHW = gaussian_blur(x_NCHW, given.blur)
            x_NCHW = clip_small_norm(x_NCHW, given.norm_percentile)
            x_NCHW = clip_small_contribution(x_NCHW, grad, given.contribution_percentile)
            if x_NCHW is not values:
                values.copy_(x_NCHW)
        assert isinstance(self._parameter, Pixels)
        self._parameter.clip()


def _names(titles: Sequence[str]) -> list[str]:
    """File stems, all different."""
    stems = ["".join(letter if letter.isalnum() else "-" for letter in title).strip("-") for title in titles]
    return [f"{n:02}-{stem}" for n, stem in enumerate(stems)]
