"""Activation maximisation, or gradient ascent: the image that maximises a class, a neuron, a channel or a layer.

Simonyan et al. 2013 (arXiv:1312.6034), Yosinski et al. 2015 (arXiv:1506.06579), Olah et al. 2017 (Feature
Visualization, distill.pub/2017/feature-visualization); whose values are whose is in ``presets``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.instrument import RedirectedRelus, require_eval
from convlens.models import Classifier, find_class
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job, require_between
from convlens.synth.images import (
    contact_sheet,
    rank_classes,
    read_rgb,
    resized,
    rounded_to_8_bits,
    shown,
    takes_size,
    to_tensor,
    to_uint8,
    top_classes,
)
from convlens.synth.objectives import BatchObjective, Objective
from convlens.synth.parameters import Pixels, make_parameterization, noise
from convlens.synth.presets import OVERRIDABLE, Settings, settings_of
from convlens.synth.regularisers import (
    RandomTransform,
    apply_transforms,
    clip_small_contribution,
    clip_small_norm,
    gaussian_blur,
    sample_transforms,
    total_variation,
)
from convlens.synth.step_gradient import StepGradient
from convlens.types import Bytes8, ModelSpec
from convlens.visualization.layout import hstack

_TINY = 1e-30
_ROWS = 4  # in a forward pass: more are no faster on a CPU, and take memory
_SHOWN = 6  # images of a snapshot


@job("ascent")
@dataclass(frozen=True, kw_only=True)
class Ascent(Job):
    """argmax over I of S(I) − λ‖I‖², several targets in one run.

    Targets are ``classes`` by index or label, whose logits S are; or of ``layer`` the ``channels`` (each the mean of
    its map), with ``y`` and ``x`` the neurons at that place, without channels the whole layer's energy. ``size`` is the
    images' side in pixels, the model's own by default. ``start`` is noise, zeros or the path of an image. All other
    options are those of ``Settings``; None takes the preset's value.
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
        require_between(16, 4096, self, "size")
        _ = self.settings  # checks them

    @property
    def settings(self) -> Settings:
        """The options, with the preset's values for those that are None."""
        return settings_of(self.preset, {name: getattr(self, name) for name in OVERRIDABLE})

    def objectives(self, spec: ModelSpec) -> list[Objective]:
        """One for each image. TargetError for an unknown class."""
        if not self.layer:
            indices = [find_class(spec.labels, label) for label in self.classes]
            return [Objective(spec.labels[index], index=index) for index in indices]
        if not self.channels:
            return [Objective(self.layer, self.layer)]
        place = "" if self.y is None else f" at {self.y}, {self.x}"
        return [Objective(f"{self.layer} {n}{place}", self.layer, n, self.y, self.x) for n in self.channels]

    def inputs(self) -> tuple[str, ...]:
        return () if self.settings.start in ("noise", "zeros") else (self.settings.start,)

    def begin(self, classifier: Classifier | None) -> AscentRun:
        return AscentRun(self, self.require_model(classifier))


class _Seen(NamedTuple):
    """Which rows a pass takes, and how it sees them."""

    first: int
    redirected: bool
    transformed: bool
    grained: bool

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + _ROWS)


class AscentRun(SynthesisRun):
    """All targets at once: row n of the batch maximises ``objectives[n]``."""

    blame = ("rate", "contribution_percentile")

    def __init__(self, job: Ascent, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._classifier, self._settings = classifier, job.settings
        self._size = (job.size, job.size) if job.size else classifier.spec.input_size
        self.objectives = job.objectives(classifier.spec)
        self._classifies = takes_size(classifier, self._size)
        if job.classes and not self._classifies:
            raise RequestError(f"{_only_size(classifier.spec)}; leave size out, or maximise a layer", field="size")
        self._objective = BatchObjective(classifier, self.objectives, self._size)
        self._generator = torch.Generator().manual_seed(job.seed)
        settings = self._settings
        self.total = settings.steps
        self._ranges = RandomTransform(settings.jitter, settings.scale, settings.rotate)
        self._parameter = make_parameterization(
            settings.parameter,
            len(self.objectives),
            self._size,
            classifier.spec,
            classifier.device,
            decorrelated=settings.decorrelated,
            smoothness=settings.smoothness,
        )
        self._gradients: dict[_Seen, StepGradient] = {}
        self._initialise(settings.start)
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
        self._optimizer: Any = kind([self._parameter.values], lr=settings.rate * self._rate_unit(), maximize=True)

    @property
    def x_NCHW(self) -> Tensor:
        """The current images, normalised."""
        with torch.no_grad():
            return self._parameter.images().detach().clone()

    def step(self) -> Mapping[str, Tensor | float]:
        values = self._parameter.values
        value_N, grad = self._values_and_gradient()
        normalised = self._settings.optimizer == "normalised"
        values.grad = grad / grad.abs().mean((1, 2, 3), keepdim=True).clamp_min(_TINY) if normalised else grad
        self._optimizer.step()
        values.grad = None
        self.done += 1
        if isinstance(self._parameter, Pixels):
            self._regularise(self._parameter, grad)
        parts = {objective.name: value for objective, value in zip(self.objectives, value_N, strict=True)}
        return {"objective": value_N.mean()} | parts

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
        spec = self._classifier.spec
        return hstack(shown(to_uint8(self.x_NCHW[:_SHOWN], spec), spec), gap=4)

    def finish(self) -> Outcome:
        """The images, and what the network says of them as 8-bit images at their own size."""
        spec = self._classifier.spec
        x_NCHW = self.x_NCHW
        images = to_uint8(x_NCHW, spec)
        facts, captions = [], []
        for objective, x_1CHW in zip(self.objectives, rounded_to_8_bits(x_NCHW, spec), strict=True):
            ranking = rank_classes(self._classifier, x_1CHW) if self._classifies else []
            fact: dict[str, Any] = asdict(objective) | {"predicted": top_classes(ranking) if ranking else None}
            caption = objective.name
            if not objective.layer:
                rank = next(n for n, entry in enumerate(ranking) if entry[0] == objective.index)
                fact |= {"rank": rank, "probability": ranking[rank][2], "logit": ranking[rank][3]}
                caption = f"{objective.name}: p = {ranking[rank][2]:.3f}"
            facts.append(fact)
            captions.append(caption)
        images = shown(images, spec)
        stems = _stems([objective.name for objective in self.objectives])
        figures = {"sheet": contact_sheet(images, captions)} if len(images) > 1 else {}
        reason = "it has no classes" if not spec.labels else "" if self._classifies else _only_size(spec)
        remarks = {"without_predictions": reason} if reason else {}
        all_facts = {"targets": facts, **remarks, **asdict(self._settings)}
        return Outcome(dict(zip(stems, images, strict=True)), figures, all_facts)

    def _values_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Each row's objective, and the gradient of their regularised sum by the parameterization's values."""
        values, count = self._parameter.values, len(self.objectives)
        maps_N23 = sample_transforms(self._ranges, count, self._size, self._generator) if self._ranges.any else None
        shape = (count, len(self._classifier.spec.mean), *self._size)
        grain = self._grain()
        grain_NCHW = noise(shape, self._generator, values.device) * grain if grain else None
        # A unit that nothing excites yet has a gradient of 0 and would stay grey for ever.
        redirected = self.done < self._settings.redirect_steps
        grad, parts = None, []
        for first in range(0, count, _ROWS):
            seen = _Seen(first, redirected, maps_N23 is not None, grain_NCHW is not None)
            if seen not in self._gradients:
                self._gradients[seen] = StepGradient(partial(self._regularised, seen))
            given = [each[seen.rows] for each in (maps_N23, grain_NCHW) if each is not None]
            _, value_N, part = self._gradients[seen](values, *given)
            grad = part if grad is None else grad.add_(part)
            parts.append(value_N)
        assert grad is not None, "there is at least one objective"
        return torch.cat(parts), grad

    def _regularised(self, seen: _Seen, values: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the objectives of these rows less the penalties, and the objectives."""
        settings, arguments = self._settings, iter(given)
        x_NCHW = self._parameter.to_images(values[seen.rows])
        # The network sees transformed images; penalties are of the untransformed ones.
        seen_NCHW = apply_transforms(x_NCHW, next(arguments)) if seen.transformed else x_NCHW
        seen_NCHW = seen_NCHW + next(arguments) if seen.grained else seen_NCHW
        with RedirectedRelus() if seen.redirected else contextlib.nullcontext():
            value_N = self._objective.values(seen_NCHW, seen.rows)
        total = value_N.sum()
        if settings.l2:
            total = total - settings.l2 * (x_NCHW**2).sum()
        if settings.tv:
            total = total - settings.tv * total_variation(x_NCHW).sum()
        return total, value_N

    def _grain(self) -> float:
        """The standard deviation of the next step's noise."""
        settings = self._settings
        settling = settings.settle * self.total
        left = (self.total - 1 - self.done) / settling if settling else 1.0
        return settings.grain * min(1.0, left)

    def _initialise(self, start: str) -> None:
        # The noise is drawn in any case, so that a seed transforms the images the same way from every start.
        values = self._parameter.values
        start_noise = noise(values.shape, self._generator, values.device) * self._settings.start_spread
        if start == "noise":
            with torch.no_grad():
                values.copy_(start_noise)
        elif start != "zeros":
            image_HWC = resized(read_rgb(start, field="start"), self._size)
            x_1CHW = to_tensor(image_HWC, self._classifier.spec, self._classifier.device)
            self._parameter.set_images(x_1CHW.expand(len(self.objectives), -1, -1, -1))

    def _rate_unit(self) -> float:
        """What the rate is measured in: on pixels a level of 255, which is 1 / (255 σ) in normalised units."""
        if self._settings.optimizer == "adam" or not isinstance(self._parameter, Pixels):
            return 1.0
        level = len(self._classifier.spec.std) / (255 * sum(self._classifier.spec.std))
        # A plain gradient is by levels as well, so it takes the factor twice.
        return level if self._settings.optimizer == "normalised" else level**2

    def _regularise(self, pixels: Pixels, grad: Tensor) -> None:
        """Yosinski's regularisers in the toolbox's order: decay, blur, small norm, small contribution."""
        settings, values = self._settings, pixels.values
        with torch.no_grad():
            x_NCHW = values.detach()
            if settings.decay:
                x_NCHW = x_NCHW * (1 - settings.decay)
            if settings.blur and self.done % settings.blur_every == 0:
                x_NCHW = gaussian_blur(x_NCHW, settings.blur)
            x_NCHW = clip_small_norm(x_NCHW, settings.norm_percentile)
            x_NCHW = clip_small_contribution(x_NCHW, grad, settings.contribution_percentile)
            if x_NCHW is not values:
                values.copy_(x_NCHW)
        pixels.clip()


def _only_size(spec: ModelSpec) -> str:
    return f"the head of {spec.name} takes images of {spec.input_size[0]}×{spec.input_size[1]} only"


def _stems(titles: Sequence[str]) -> list[str]:
    """File stems, all different."""
    stems = ["".join(letter if letter.isalnum() else "-" for letter in title).strip("-") for title in titles]
    return [f"{n:02}-{stem}" for n, stem in enumerate(stems)]
