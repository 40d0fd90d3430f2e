"""Feature inversion (Mahendran & Vedaldi 2015): the picture that a layer's features still tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.image import prepare, read
from convlens.instrument import PartialForward, require_eval
from convlens.models import Classifier
from convlens.synth.base import Job, Outcome, State, SynthesisRun, job
from convlens.synth.images import channels_last, contact_sheet, to_tensor, to_uint8
from convlens.synth.lbfgs import ResumableLBFGS
from convlens.synth.parameters import KINDS, make_parameterization, noise
from convlens.synth.regularisers import total_variation
from convlens.types import Bytes8
from convlens.visualization.layout import hstack

_SHALLOW, _DEEP = 0.001, 20.0  # weights of total variation


@job("invert")
@dataclass(frozen=True, kw_only=True)
class Invert(Job):
    """argmin over x of ‖Φ(x) − Φ₀‖² / ‖Φ₀‖² + λα R_α(x) + λ_tv R_Vβ(x), for each of ``layers`` a picture of its own.

    ``picture`` is seen as the model sees it. R_α is the mean of |x / b|^α over pixels and channels, b the range of the
    normalised pixels; R_Vβ the mean over pixels of the total variation to the power ``beta``, x in units of b: so that
    weights mean the same at any size. ``tv`` holds a weight for each layer, or one for all; without any they rise from
    layer to layer, from .001 to 20, as the authors' do: the less a layer tells, the more has to be filled in.
    ``others`` are other pictures' paths: the second error is the distance over the mean distance between features of
    different pictures. ``parameter`` fourier seeks the picture by its frequencies (as ascent does), which keeps deep
    layers from being matched by noise; pixels as the authors do. ``optimizer``: lbfgs, or sgd with momentum .9 at
    ``rate``, which falls to a tenth after half of the steps and to a hundredth after three quarters.
    """

    picture: str
    layers: tuple[str, ...] = ("conv_stem", "blocks.1.1", "blocks.3.1", "blocks.5.1", "blocks.6.0")
    others: tuple[str, ...] = ()
    steps: int = 200
    parameter: str = "fourier"
    optimizer: str = "lbfgs"
    rate: float = 0.2
    tv: tuple[float, ...] = ()
    beta: float = 2.0
    norm: float = 1e-4
    alpha: float = 6.0
    start_spread: float = 0.01

    def __post_init__(self) -> None:
        if not self.layers:
            raise RequestError("invert needs a layer or several", field="layers")
        if len(self.tv) not in (0, 1, len(self.layers)):
            raise RequestError(f"tv should be one weight, or one for each of {len(self.layers)} layers", field="tv")
        if self.parameter not in KINDS:
            raise RequestError(f"no parameter {self.parameter!r}; there are: {', '.join(KINDS)}", field="parameter")
        if self.optimizer not in ("lbfgs", "sgd"):
            raise RequestError(f"no optimizer {self.optimizer!r}; there are: lbfgs, sgd", field="optimizer")
        if self.steps < 1:
            raise RequestError(f"steps should be 1 or more, not {self.steps}", field="steps")
        for name, number in (
            ("norm", self.norm),
            ("tv", min(self.tv, default=0.0)),
            ("start_spread", self.start_spread),
        ):
            if not number >= 0:
                raise RequestError(f"{name} should be 0 or more, not {number}", field=name)
        for name, number in (("beta", self.beta), ("alpha", self.alpha), ("rate", self.rate)):
            if not number > 0:
                raise RequestError(f"{name} should be above 0, not {number}", field=name)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of total variation, one for each layer."""
        if len(self.tv) == 1:
            return self.tv * len(self.layers)
        last = max(1, len(self.layers) - 1)
        return self.tv or tuple(_SHALLOW * (_DEEP / _SHALLOW) ** (n / last) for n in range(len(self.layers)))

    def inputs(self) -> tuple[str, ...]:
        return (self.picture, *self.others)

    def begin(self, classifier: Classifier | None) -> InvertRun:
        if classifier is None:
            raise RequestError("invert needs a model", field="model")
        return InvertRun(self, classifier)


class InvertRun(SynthesisRun):
    """Layer after layer, each for as many steps."""

    blame = ("rate", "tv", "norm")

    def __init__(self, job: Invert, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._job, self._classifier = job, classifier
        self._view = _seen(job.picture, classifier, "picture")
        self._target = to_tensor(self._view, classifier.spec, classifier.device)
        self._layers = tuple(dict.fromkeys(job.layers))
        every = PartialForward(classifier.module, self._layers, self._target)  # also: an unknown layer is told at once
        with torch.no_grad():
            self._wanted = every(self._target)
        self._range = 1 / float(min(classifier.spec.std))
        self._found: list[Tensor] = []
        self.total = len(self._layers) * job.steps
        self._open(0)

    def step(self) -> Mapping[str, Tensor | float]:
        at, layer = divmod(self.done, self._job.steps)[::-1]
        if at == 0 and layer > 0:
            self._found.append(self._now)
            self._open(layer)
        if self._newton is not None:
            value = self._newton.step()
        else:
            value = self._descend(at)
        self.done += 1
        return {"objective": value, self._layers[layer]: value}

    def state_dict(self) -> State:
        moving = self._newton.state_dict() if self._newton else {"x": self._x, "velocity": self._velocity}
        return {"done": self.done, "found": self._found, "moving": moving}

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]
        self._found = [found.to(self._target) for found in state["found"]]
        self._open(min((self.done - 1) // self._job.steps, len(self._layers) - 1) if self.done else 0)
        if self._newton is not None:
            self._newton.load_state_dict(state["moving"])
        else:
            self._x, self._velocity = (state["moving"][name].to(self._target) for name in ("x", "velocity"))

    def snapshot(self) -> Bytes8:
        return hstack([*to_uint8(torch.cat([*self._found, self._now]), self._classifier.spec)], gap=4)

    def finish(self) -> Outcome:
        pictures = to_uint8(torch.cat([*self._found, self._now]), self._classifier.spec)
        errors = [self._errors(layer, picture) for layer, picture in zip(self._layers, pictures, strict=True)]
        captions = [_caption(layer, error) for layer, error in zip(self._layers, errors, strict=True)]
        names = [f"{n:02}-{layer.replace('.', '-')}" for n, layer in enumerate(self._layers)]
        facts: dict[str, Any] = {
            "layers": [{"layer": layer, **error} for layer, error in zip(self._layers, errors, strict=True)]
        }
        figure = contact_sheet([self._view, *pictures], ["the picture", *captions])
        return Outcome(dict(zip(names, pictures, strict=True)), {"shallow-to-deep": figure}, facts)

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _now(self) -> Tensor:
        with torch.no_grad():
            return self._parameter.to_images(self._newton.x if self._newton is not None else self._x).detach()

    def _open(self, layer: int) -> None:
        """Start with a layer, from noise of its own."""
        name = self._layers[layer]
        self._up_to = PartialForward(self._classifier.module, [name], self._target)
        self._tv = self._job.weights[layer]
        self._name = name
        generator = torch.Generator().manual_seed(self._job.seed * 1000 + layer)
        size = (self._target.shape[2], self._target.shape[3])
        spec, device = self._classifier.spec, self._target.device
        self._parameter = make_parameterization(self._job.parameter, 1, size, spec, device, decorrelated=True)
        x = noise(self._parameter.values.shape, generator, device) * self._job.start_spread
        self._newton = ResumableLBFGS(x, self._loss) if self._job.optimizer == "lbfgs" else None
        self._x, self._velocity = x, torch.zeros_like(x)

    def _loss(self, values: Tensor) -> Tensor:
        x_NCHW = self._parameter.to_images(values)
        wanted, job = self._wanted[self._name], self._job
        error = ((self._up_to(channels_last(x_NCHW))[self._name] - wanted) ** 2).sum() / (wanted**2).sum().clamp_min(
            1e-30
        )
        unit = x_NCHW / self._range
        total = error
        if job.norm:
            total = total + job.norm * ((unit**2) ** (job.alpha / 2)).mean()  # powers of whole numbers are fast
        if self._tv:
            total = total + self._tv * total_variation(unit, job.beta).sum() / unit[0, 0].numel()
        return total

    def _descend(self, at: int) -> Tensor:
        x = self._x.detach().requires_grad_()
        with torch.enable_grad():
            value = self._loss(x)
        (grad,) = torch.autograd.grad(value, x)
        share = at / self._job.steps
        rate = self._job.rate * (1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01)
        # The loss is about 1 and its gradient of the size 1 / numbers of the picture: the step is in units of a pixel.
        self._velocity = 0.9 * self._velocity - rate * grad / grad.abs().mean().clamp_min(1e-30) * 0.01
        self._x = (x + self._velocity).detach()
        return value.detach()

    def _errors(self, layer: str, picture: Bytes8) -> dict[str, float | None]:
        """Of the picture as saved: squared over the squared length, and the distance over that between pictures."""
        up_to = PartialForward(self._classifier.module, [layer], self._target)
        with torch.no_grad():
            found = up_to(to_tensor(picture, self._classifier.spec, self._classifier.device))[layer].double()
            wanted = self._wanted[layer].double()
            distance = float((found - wanted).norm())
            pairwise = self._pairwise(up_to, layer)
        return {
            "normalised_error": distance**2 / max(float((wanted**2).sum()), 1e-30),
            "error_over_pairwise": distance / pairwise if pairwise else None,
        }

    def _pairwise(self, up_to: PartialForward, layer: str) -> float:
        """Mean distance between the features of different pictures; 0 where there are no others."""
        features = [self._wanted[layer].double().flatten()]
        for path in self._job.others:
            x = to_tensor(_seen(path, self._classifier, "others"), self._classifier.spec, self._classifier.device)
            features.append(up_to(x)[layer].double().flatten())
        distances = [float((one - two).norm()) for n, one in enumerate(features) for two in features[:n]]
        return sum(distances) / len(distances) if distances else 0.0


def _seen(path: str, classifier: Classifier, field: str) -> Bytes8:
    if not Path(path).is_file():
        raise RequestError(f"{field}: no picture {path}", field=field)
    return prepare(read(path), classifier.spec).view_HWC


def _caption(layer: str, error: Mapping[str, float | None]) -> str:
    said = f"{layer}: error {error['normalised_error']:.3f}"
    over = error["error_over_pairwise"]
    return said if over is None else f"{said}, {over:.2f} of the distance between pictures"
