"""Feature inversion: the image that can be reconstructed from a layer's features (Mahendran & Vedaldi 2015,
arXiv:1412.0035).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlens.errors import RequestError
from convlens.image import prepare, read_channels
from convlens.instrument import PartialForward, in_format_of, require_eval
from convlens.models import Classifier
from convlens.synth.base import (
    Job,
    Outcome,
    State,
    SynthesisRun,
    job,
    require_at_least,
    require_choice,
    require_positive,
)
from convlens.synth.images import contact_sheet, shown, to_tensor, to_uint8
from convlens.synth.lbfgs import ResumableLBFGS
from convlens.synth.parameters import KINDS, make_parameterization, noise
from convlens.synth.regularisers import total_variation
from convlens.synth.step_gradient import StepGradient
from convlens.synth.trunk import inversion_layers
from convlens.types import Bytes8
from convlens.visualization.layout import hstack

_SHALLOW_TV, _DEEP_TV = 0.001, 20.0  # default weights of total variation
# Of the picture's contrast: images below the first share are drawn at the second in the figure. Deep layers are matched
# by faint images whatever the weights (σ 8 of 44 levels for weights of total variation from .05 to 20).
_FAINT, _DRAWN = 0.5, 0.75


@job("invert")
@dataclass(frozen=True, kw_only=True)
class Invert(Job):
    """argmin over x of ‖Φ(x) − Φ₀‖² / ‖Φ₀‖² + λα R_α(x) + λ_tv R_Vβ(x), an image for each of ``layers``.

    Without ``layers`` they are five from the first to the last (``trunk.inversion_layers``). Φ₀ are the features of
    ``picture``, preprocessed for the model. The priors are R_α, the mean of |x / b|^``alpha`` over pixels and channels
    (weight ``norm``), b the range of the normalised pixels; and R_Vβ, the mean over pixels of the total variation of
    x / b to the power ``beta``: means, so that weights are independent of the size. ``tv`` holds R_Vβ's weight for each
    layer, or one for all; the default rises from .001 in the first to 20 in the last, as the
    authors' do, because deeper layers determine less of the image.
    ``others`` are paths of other images: the second error is the distance over the mean distance between features of
    different images. ``parameter``: "fourier" optimises Fourier coefficients (as ascent does), which keeps deep layers
    from being matched by noise; "pixels" is the authors'. ``optimizer``: "lbfgs", or "sgd" with momentum .9 at
    ``rate``, which falls to a tenth after half of the steps and to a hundredth after three quarters.
    """

    picture: str
    layers: tuple[str, ...] = ()
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
        if len(self.tv) > 1 and not self.layers:
            raise RequestError("several weights tv are those of layers; name these", field="layers")
        if len(self.tv) not in (0, 1, len(self.layers)):
            raise RequestError(f"tv should be one weight, or one for each of {len(self.layers)} layers", field="tv")
        require_choice(KINDS, self, "parameter")
        require_choice(("lbfgs", "sgd"), self, "optimizer")
        require_at_least(1, self, "steps")
        require_at_least(0, self, "norm", "start_spread")
        if not min(self.tv, default=0.0) >= 0:
            raise RequestError(f"tv should be 0 or more, not {min(self.tv)}", field="tv")
        require_positive(self, "beta", "alpha", "rate")

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of total variation for each layer."""
        if len(self.tv) == 1:
            return self.tv * len(self.layers)
        last = max(1, len(self.layers) - 1)
        return self.tv or tuple(_SHALLOW_TV * (_DEEP_TV / _SHALLOW_TV) ** (n / last) for n in range(len(self.layers)))

    def inputs(self) -> tuple[str, ...]:
        return (self.picture, *self.others)

    def resolved(self, classifier: Classifier | None) -> Invert:
        return self if self.layers else replace(self, layers=inversion_layers(self.require_model(classifier)))

    def begin(self, classifier: Classifier | None) -> InvertRun:
        return InvertRun(self.resolved(classifier), self.require_model(classifier))


class InvertRun(SynthesisRun):
    """Layer after layer, each for ``steps`` steps from its own noise."""

    blame = ("rate", "tv", "norm")

    def __init__(self, job: Invert, classifier: Classifier) -> None:
        require_eval(classifier.module)
        self._job, self._classifier = job, classifier
        self._view = _model_view(job.picture, classifier, "picture")
        self._target = to_tensor(self._view, classifier.spec, classifier.device)
        self._layers = tuple(dict.fromkeys(job.layers))
        # For all layers at once, so that an unknown one is refused before any step.
        up_to_all = PartialForward(classifier.module, self._layers, self._target)
        with torch.no_grad():
            self._target_features = up_to_all(self._target)
        self._range = 1 / float(min(classifier.spec.std))
        self._results: list[Tensor] = []
        self.total = len(self._layers) * job.steps
        self._begin_layer(0)

    def step(self) -> Mapping[str, Tensor | float]:
        layer, step = divmod(self.done, self._job.steps)
        if step == 0 and layer > 0:
            self._results.append(self._current)
            self._begin_layer(layer)
        loss = self._descend(step) if self._lbfgs is None else self._lbfgs.step()
        self.done += 1
        return {"objective": loss, self._layers[layer]: loss}

    def state_dict(self) -> State:
        optimizer = self._lbfgs.state_dict() if self._lbfgs else {"x": self._x, "velocity": self._velocity}
        return {"done": self.done, "found": self._results, "moving": optimizer}

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]
        self._results = [result.to(self._target) for result in state["found"]]
        self._begin_layer(min((self.done - 1) // self._job.steps, len(self._layers) - 1) if self.done else 0)
        if self._lbfgs is not None:
            self._lbfgs.load_state_dict(state["moving"])
        else:
            self._x, self._velocity = (state["moving"][name].to(self._target) for name in ("x", "velocity"))

    def snapshot(self) -> Bytes8:
        return hstack(shown(self._images(), self._classifier.spec), gap=4)

    def finish(self) -> Outcome:
        images = self._images()
        errors = [self._errors(layer, image_HWC) for layer, image_HWC in zip(self._layers, images, strict=True)]
        factors = [contrast_factor(image_HWC, self._view) for image_HWC in images]
        captions = [_caption(*each) for each in zip(self._layers, errors, factors, strict=True)]
        names = [f"{n:02}-{layer.replace('.', '-')}" for n, layer in enumerate(self._layers)]
        facts: dict[str, Any] = {
            "layers": [
                {"layer": layer, **error, "contrast_levels": float(image_HWC.std())}
                for layer, error, image_HWC in zip(self._layers, errors, images, strict=True)
            ],
            "contrast_levels": float(self._view.std()),
        }
        view_HWC, *images = shown([self._view, *images], self._classifier.spec)
        drawn = [with_contrast(image_HWC, factor) for image_HWC, factor in zip(images, factors, strict=True)]
        figure = contact_sheet([view_HWC, *drawn], ["the picture", *captions])
        return Outcome(dict(zip(names, images, strict=True)), {"shallow-to-deep": figure}, facts)

    @property
    def _current(self) -> Tensor:
        with torch.no_grad():
            return self._parameter.to_images(self._lbfgs.x if self._lbfgs is not None else self._x).detach()

    def _images(self) -> list[Bytes8]:
        return to_uint8(torch.cat([*self._results, self._current]), self._classifier.spec)

    def _begin_layer(self, layer: int) -> None:
        self._layer = self._layers[layer]
        self._up_to = PartialForward(self._classifier.module, [self._layer], self._target)
        self._tv = self._job.weights[layer]
        # A generator for each layer: a resumed run need not repeat the noise of those before.
        generator = torch.Generator().manual_seed(self._job.seed * 1000 + layer)
        size = (self._target.shape[2], self._target.shape[3])
        spec, device = self._classifier.spec, self._target.device
        self._parameter = make_parameterization(self._job.parameter, 1, size, spec, device, decorrelated=True)
        x = noise(self._parameter.values.shape, generator, device) * self._job.start_spread
        self._gradient = StepGradient(self._loss)
        self._lbfgs = ResumableLBFGS(x, self._gradient) if self._job.optimizer == "lbfgs" else None
        self._x, self._velocity = x, torch.zeros_like(x)

    def _loss(self, values: Tensor) -> tuple[Tensor, Tensor]:
        x_NCHW = self._parameter.to_images(values)
        target, job = self._target_features[self._layer], self._job
        features = self._up_to(in_format_of(self._classifier.module, x_NCHW))[self._layer]
        total = ((features - target) ** 2).sum() / (target**2).sum().clamp_min(1e-30)
        unit = x_NCHW / self._range
        if job.norm:
            # |x|^α as (x²)^(α/2): powers with a whole exponent are fast, and no sign has to be removed.
            total = total + job.norm * ((unit**2) ** (job.alpha / 2)).mean()
        if self._tv:
            total = total + self._tv * total_variation(unit, job.beta).sum() / unit[0, 0].numel()
        return total, total

    def _descend(self, step: int) -> Tensor:
        """A step of gradient descent with momentum."""
        x = self._x
        loss, _, grad = self._gradient(x)
        share = step / self._job.steps
        rate = self._job.rate * (1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01)
        # The loss is about 1, so its gradient shrinks with the size of the image: normalised, the step is in pixels.
        self._velocity = 0.9 * self._velocity - rate * grad / grad.abs().mean().clamp_min(1e-30) * 0.01
        self._x = x + self._velocity
        return loss

    def _errors(self, layer: str, image_HWC: Bytes8) -> dict[str, float | None]:
        """Errors of the image as saved: normalised as in the objective, and relative to other images' distances."""
        up_to = PartialForward(self._classifier.module, [layer], self._target)
        with torch.no_grad():
            features = up_to(to_tensor(image_HWC, self._classifier.spec, self._classifier.device))[layer].double()
            target = self._target_features[layer].double()
            distance = float((features - target).norm())
            pairwise = self._pairwise(up_to, layer)
        return {
            "normalised_error": distance**2 / max(float((target**2).sum()), 1e-30),
            "error_over_pairwise": distance / pairwise if pairwise else None,
        }

    def _pairwise(self, up_to: PartialForward, layer: str) -> float:
        """Mean distance between the features of different images; 0 where there are no others."""
        features = [self._target_features[layer].double().flatten()]
        for path in self._job.others:
            x = to_tensor(_model_view(path, self._classifier, "others"), self._classifier.spec, self._classifier.device)
            features.append(up_to(x)[layer].double().flatten())
        distances = [float((later - earlier).norm()) for n, later in enumerate(features) for earlier in features[:n]]
        return sum(distances) / len(distances) if distances else 0.0


def _model_view(path: str, classifier: Classifier, field: str) -> Bytes8:
    """The image resized and cropped as the model sees it."""
    if not Path(path).is_file():
        raise RequestError(f"{field}: no picture {path}", field=field)
    spec = classifier.spec
    view_HWC = prepare(read_channels(path, spec.channels), spec).view_HWC
    # What is compared with it, and what is saved, has 8 bits as well.
    return view_HWC if view_HWC.dtype == np.uint8 else np.rint(view_HWC * 255).astype(np.uint8)


def contrast_factor(image_HWC: Bytes8, picture_HWC: Bytes8) -> float:
    """By how much a faint image's contrast is raised in the figure; 1 for one that is not faint, or has none at all."""
    contrast, wanted = float(image_HWC.std()), float(picture_HWC.std())
    return 1.0 if contrast >= _FAINT * wanted or contrast == 0 else _DRAWN * wanted / contrast


def with_contrast(image_HWC: Bytes8, factor: float) -> Bytes8:
    """The image with its differences from the mean colour multiplied."""
    mean_C = image_HWC.mean((0, 1))
    return np.asarray(np.clip(np.rint(mean_C + factor * (image_HWC - mean_C)), 0, 255), np.uint8)


def _caption(layer: str, error: Mapping[str, float | None], factor: float) -> str:
    text = f"{layer}: error {error['normalised_error']:.3f}"
    relative = error["error_over_pairwise"]
    text = text if relative is None else f"{text}, {relative:.2f} of the distance between pictures"
    return text if factor == 1 else f"{text}; drawn with {factor:.1f} times its contrast"
