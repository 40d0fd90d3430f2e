"""Sanity checks of explanations: does a map change when the network's weights are random (Adebayo et al. 2018)?

A map that stays what it was cannot show what the network has learnt. arXiv:1810.03292.

    with RandomisedNetworks(classifier, stages(classifier), seed=0) as networks:
        for x_CHW, target in ...:
            curves = networks.curves(x_CHW, target, {"saliency": {}, "grad_cam": {}})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from convlens.errors import ModelError, RequestError
from convlens.evaluation.relevance import relevance
from convlens.evaluation.similarity import SSIM_WINDOW, spearman, ssim
from convlens.evaluation.stages import Stage
from convlens.explain import ForwardPass, get, run
from convlens.instrument import copy_of
from convlens.models import Classifier
from convlens.types import Attribution, Floats, Step, no_op
from convlens.visualization.heatmaps import divide_by_limit

Curves = dict[str, dict[str, dict[str, Any]]]
"""Method -> ``cascading`` or ``independent`` -> ``spearman``, ``spearman_absolute``, ``ssim``: a number a stage."""
MODES = ("cascading", "independent")
_MEASURES = ("spearman", "spearman_absolute", "ssim")


def randomised(classifier: Classifier, stages: Sequence[Stage], *, seed: int) -> Classifier:
    """The classifier on a copy of its network that has random weights in these stages.

    Matrices and filters are drawn anew: normal, of mean 0 and of their own root mean square. Vectors (biases, scales,
    and of a batch norm its running statistics too) are shuffled, those of one module by the same permutation. Single
    numbers stay. A stage gets the same weights whichever others are randomised with it. The other weights are shared
    with ``classifier``, which stays as it is; the copy has no graphs and no weights' hash.
    """
    return _with_values(classifier, _random_values(classifier.module, stages, seed))


# Measured on photographs. A layer's own reset_parameters shrinks what flows through: SqueezeNet's logits then vary by
# 1e-8 from one to the next, and maps are rounding errors. By root mean square a quarter of each ReLU's outputs or more
# are on, and all of Lite0's logits have a gradient; of SqueezeNet's, which leave a ReLU, .82 are on, against .53 for
# weights shuffled among themselves, whose mean is below 0. A batch norm's trained statistics belong to the scales
# beside them: with scales shuffled and statistics kept Lite0's gradients varied 26-fold over six photographs, with both
# shuffled together 2.3-fold.
def _random_values(module: nn.Module, stages: Sequence[Stage], seed: int) -> dict[str, Tensor]:
    """New values of the parameters of these stages, and of the batch norms' statistics in them, by name."""
    values: dict[str, Tensor] = {}
    for stage in stages:
        for owner, names in _by_owner(module, stage).items():
            generator = torch.Generator().manual_seed(_seed_of(owner, seed))
            permutations: dict[int, Tensor] = {}
            for name, tensor in names.items():
                values[name] = _random_tensor(tensor, generator, permutations).to(tensor)
    return values


def _seed_of(owner: str, seed: int) -> int:
    """The same for a module whatever is randomised beside it, and another for each."""
    return int(np.random.SeedSequence([seed, *owner.encode()]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _by_owner(module: nn.Module, stage: Stage) -> dict[str, dict[str, Tensor]]:
    """Module's name -> its own parameters of this stage and vectors among its buffers, by their names in full."""
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    owned: dict[str, dict[str, Tensor]] = {}
    for name in stage.parameters:
        owned.setdefault(name.rpartition(".")[0], {})[name] = parameters[name]
    for owner, tensors in owned.items():
        own = {name: each for name, each in buffers.items() if name.rpartition(".")[0] == owner}
        # Filters among the buffers are no weights: a fixed blur, for instance.
        tensors.update({name: each for name, each in own.items() if _is_vector(each) and each.is_floating_point()})
    return owned


def _is_vector(tensor: Tensor) -> bool:
    return sum(side > 1 for side in tensor.shape) == 1


def _random_tensor(tensor: Tensor, generator: torch.Generator, permutations: dict[int, Tensor]) -> Tensor:
    trained = tensor.detach().cpu()
    if trained.numel() < 2 or not trained.is_floating_point():
        return trained
    if _is_vector(trained):
        if trained.numel() not in permutations:
            permutations[trained.numel()] = torch.randperm(trained.numel(), generator=generator)
        return trained.flatten()[permutations[trained.numel()]].reshape(trained.shape)
    size = trained.double().square().mean().sqrt()
    return torch.randn(trained.shape, generator=generator, dtype=torch.float64) * size


def _with_values(classifier: Classifier, values: Mapping[str, Tensor]) -> Classifier:
    trained = dict(classifier.module.named_parameters())
    module = copy_of(classifier.module)
    for name, parameter in module.named_parameters():
        # By .data, so that weights used at several places stay one, and scripted layers see it.
        parameter.data = values.get(name, trained[name].data)
    for name, buffer in module.named_buffers():
        if name in values:
            buffer.data = values[name]
    # The hash would be that of the trained weights.
    spec = dataclasses.replace(classifier.spec, weights_sha256="")
    return dataclasses.replace(classifier, module=module, spec=spec, graphs=None)


@dataclass(frozen=True)
class _Network:
    """A randomised copy, and its place in the curves: for the first stage both modes have the same."""

    modes: tuple[str, ...]
    stage: int
    classifier: Classifier


class RandomisedNetworks:
    """A network's copies with random weights, built once for many images and methods.

    ``cascading``: the stages from the top down to the k-th are random; ``independent``: the k-th alone. The copies
    share what is not random, and a stage's random weights: together they hold the weights twice. In a ``with`` they
    are freed at its end.
    """

    def __init__(self, classifier: Classifier, stages: Sequence[Stage], *, seed: int = 0) -> None:
        if not stages:
            raise RequestError("there is no stage to randomise; take those of stages(classifier)", field="stages")
        self.classifier = classifier
        self.stages = tuple(stages)
        self._networks = tuple(_networks(classifier, self.stages, seed))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._networks = ()

    def curves(
        self,
        x_CHW: Tensor | Floats,
        target: int | None,
        methods: Mapping[str, Mapping[str, Any]],
        *,
        originals: Mapping[str, Floats] | None = None,
        on_step: Callable[[Step], None] = no_op,
    ) -> Curves:
        """For each method how alike its maps of the trained and of each randomised network are, stage by stage.

        ``target`` is a class, None in a network that gives embeddings and has no classes. ``methods`` are names and
        their options, ``originals`` maps per pixel (H, W) of the trained network, as ``relevance`` gives them, for
        those that are computed already.

        ``spearman`` correlates the pixels' relevance with its sign, the order that insertion and deletion use, and
        ``spearman_absolute`` its magnitude. The paper states both; for maps without a sign they are the same. ``ssim``
        compares the maps as drawn, each at its own scale. None stands where there is nothing to compare, and ``errors``
        then says why, by the stage's name.

        Raises what ``run`` raises for the trained network, and RequestError for a method without a map.
        """
        if not self._networks:
            raise RequestError("these randomised networks are closed; build them anew")
        for name in methods:
            if get(name).drawing == "thumbnails":
                raise RequestError(f"{name} gives no map, and randomisation compares maps", field="methods")
        maps = dict(originals or {})
        missing = {name: options for name, options in methods.items() if name not in maps}
        forward = ForwardPass(self.classifier, _batch(x_CHW))
        maps.update({name: _map(name, forward, target, options) for name, options in missing.items()})
        curves: Curves = {name: {mode: self._empty() for mode in MODES} for name in methods}
        for done, network in enumerate(self._networks):
            forward = ForwardPass(network.classifier, _batch(x_CHW))
            for name, options in methods.items():
                self._fill(curves[name], network, _compared(name, maps[name], forward, target, options))
            on_step(Step("randomisation", done + 1, len(self._networks)))
        return curves

    def _empty(self) -> dict[str, Any]:
        return {measure: [None] * len(self.stages) for measure in _MEASURES}

    def _fill(self, curves: dict[str, dict[str, Any]], network: _Network, compared: _Compared) -> None:
        for mode in network.modes:
            for measure, value in compared.values.items():
                curves[mode][measure][network.stage] = value
            if compared.error:
                curves[mode].setdefault("errors", {})[self.stages[network.stage].name] = compared.error


def _networks(classifier: Classifier, stages: Sequence[Stage], seed: int) -> Iterator[_Network]:
    values = [_random_values(classifier.module, [stage], seed) for stage in stages]
    above: dict[str, Tensor] = {}
    for number, own in enumerate(values):
        above |= own
        yield _Network(MODES if number == 0 else MODES[:1], number, _with_values(classifier, above))
        if number:
            yield _Network(MODES[1:], number, _with_values(classifier, own))


def randomisation_curves(
    classifier: Classifier,
    x_CHW: Tensor | Floats,
    target: int | None,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    stages: Sequence[Stage],
    seed: int = 0,
    on_step: Callable[[Step], None] = no_op,
) -> Curves:
    """``RandomisedNetworks.curves`` of one image; for several, build the networks once."""
    with RandomisedNetworks(classifier, stages, seed=seed) as networks:
        return networks.curves(x_CHW, target, methods, on_step=on_step)


def randomisation_values(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of one method's curves, without those that could not be measured.

    ``randomised_top``: the cascade's rank correlation with the head random; ``randomised_all``: with all random.
    """
    correlations = curves["cascading"]["spearman"]
    ends = {"randomised_top": correlations[0], "randomised_all": correlations[-1]}
    return {name: value for name, value in ends.items() if value is not None}


@dataclass(frozen=True)
class _Compared:
    values: Mapping[str, float | None]
    error: str = ""


def _batch(x_CHW: Tensor | Floats) -> Tensor:
    return torch.as_tensor(x_CHW)[None]


def _map(name: str, forward: ForwardPass, target: int | None, options: Mapping[str, Any]) -> Floats:
    result = run(name, forward, None if target is None else [target], options)
    assert isinstance(result, Attribution), "methods without a map were refused"
    return relevance(result.values_NCHW[0], get(name).drawing)


def _compared(
    name: str, original_HW: Floats, forward: ForwardPass, target: int | None, options: Mapping[str, Any]
) -> _Compared:
    try:
        map_HW = _map(name, forward, target, options)
    except (ModelError, RequestError, ValueError) as error:  # of random weights: infinite scores, a target never on
        return _Compared({}, str(error))
    return _similarity(original_HW, map_HW, is_signed=get(name).drawing == "signed")


def _similarity(original_HW: Floats, map_HW: Floats, *, is_signed: bool) -> _Compared:
    for which, each in (("the trained", original_HW), ("this", map_HW)):
        if np.ptp(each) == 0:
            return _Compared({}, f"the map of {which} network has the same value everywhere")
    values: dict[str, float | None] = {
        "spearman": spearman(original_HW, map_HW),
        "spearman_absolute": spearman(np.abs(original_HW), np.abs(map_HW)),
    }
    if min(map_HW.shape) < SSIM_WINDOW:
        return _Compared(values, f"ssim needs maps of {SSIM_WINDOW} pixels a side")
    # As they are drawn: 0..1, and those with a sign -1..1.
    drawn = [divide_by_limit(each, None) for each in (original_HW, map_HW)]
    return _Compared(values | {"ssim": ssim(*drawn, data_range=2.0 if is_signed else 1.0)})
