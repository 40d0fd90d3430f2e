"""The explanation methods by name. A new method is one new file with a decorated function in ``methods/``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from convlens.errors import RequestError, UnsupportedModelError, near_matches
from convlens.explain.forward import Forward
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.explain.torch_forward import ForwardPass
from convlens.instrument import arithmetic, precision_was_chosen
from convlens.types import Ints, Result
from convlens.utils.registry import Registry

Needs = Literal["gradient", "maps", "scores", "embedding", "model"]
Drawing = Literal["magnitude", "signed", "gradient", "thumbnails"]
OverlaySigns = Literal["both", "positive"]
Explainer = Callable[..., Result]
CostEstimate = Callable[[Mapping[str, Any], tuple[int, int]], float]
RateKey = Callable[[Mapping[str, Any], tuple[int, int], SweepAutotuner], str]
CheaperValues = Callable[[Mapping[str, Any]], tuple[str, range]]

_DIFFERENTIATES: tuple[Needs, ...] = ("gradient", "maps", "model")
_TF32 = (
    "torch let the GPU round to TF32, which moved saliency by up to 24 % of its largest value; for float32 load the "
    "model by convlens.load(..., precision='float32')"
)


def _forward_and_backward(_: Mapping[str, Any], __: tuple[int, int]) -> float:
    return 3.0  # the gradient by the input took 1.9 to 2.1 forward passes


def _one_rate(_: Mapping[str, Any], __: tuple[int, int], ___: SweepAutotuner) -> str:
    return ""


def _nothing_cheaper(_: Mapping[str, Any]) -> tuple[str, range]:
    return "", range(0)


@dataclass(frozen=True)
class Method:
    """One explanation method and what the engine, the command line and the report need to know of it.

    ``needs`` says what can be shared between the rows of a batch, ``drawing`` how raw values become an image.
    ``cost(options, size)`` estimates the work on one image of that height and width, in forward passes. Calls with the
    same ``rate_key(options, size, sweeps)`` take about the same seconds per forward pass of that estimate.
    ``cheaper_values(options)`` names the option that lowers the cost, and its values from the next cheaper one to the
    cheapest. ``shows_regions``: its maps are coarse, and it is compared with methods of coarse maps first. ``caution``
    is a warning that goes with each map of a class. ``overlay_signs`` says which part of a signed map is laid over the
    photograph: ``positive`` for shares that change sign from pixel to pixel, which cannot be read otherwise.
    """

    name: str
    title: str
    run: Explainer
    needs: Needs
    drawing: Drawing
    shows: str
    does_not_show: str
    cost: CostEstimate
    rate_key: RateKey
    cheaper_values: CheaperValues
    shows_regions: bool = False
    caution: str = ""
    overlay_signs: OverlaySigns = "both"

    @functools.cached_property
    def options(self) -> Mapping[str, tuple[Any, Any]]:
        """Option name -> (type, possibly Annotated with its bounds; default)."""
        hints = get_type_hints(self.run, include_extras=True)
        parameters = inspect.signature(self.run).parameters.values()
        return {p.name: (hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}

    def explain(self, forward: Forward, target_N: Sequence[int] | Ints | None, options: Mapping[str, Any]) -> Result:
        """As ``run``, for options that have been checked; raises what ``run`` does beside that."""
        if self.needs == "model" and not isinstance(forward, ForwardPass):
            raise UnsupportedModelError(
                f"{self.name} needs the network itself, and this model consists of graphs; serve it with "
                "--runtime torch",
                field="method",
            )
        if forward.explains_classes and self.needs in _DIFFERENTIATES:
            require_classes(forward, self.name)
        with arithmetic(forward.precision, forward.device):
            if self.needs == "gradient":
                # Before targets() reads the logits: that alone would make a forward pass without a graph, and the
                # gradient another one with it.
                forward.record()
            result = self.run(forward, forward.targets(target_N), **options)
        warnings = [self.caution] if self.caution and forward.explains_classes else []
        if self._is_unwanted_tf32(forward, result):
            warnings.append(_TF32)
        if not warnings:
            return result
        return replace(result, meta=replace(result.meta, warnings=(*result.meta.warnings, *warnings)))

    def _is_unwanted_tf32(self, forward: Forward, result: Result) -> bool:
        """Whether it is a gradient in TF32 that nobody asked for."""
        chosen = forward.precision is not None or precision_was_chosen()
        return not chosen and self.needs in _DIFFERENTIATES and result.meta.precision == "tf32"


_METHODS: Registry[Method] = Registry("convlens.explain.methods", noun="method", error=RequestError, field="method")


def explainer(
    name: str,
    *,
    title: str,
    needs: Needs,
    drawing: Drawing,
    shows: str,
    does_not_show: str,
    cost: CostEstimate = _forward_and_backward,
    rate_key: RateKey = _one_rate,
    cheaper_values: CheaperValues = _nothing_cheaper,
    shows_regions: bool = False,
    caution: str = "",
    overlay_signs: OverlaySigns = "both",
) -> Callable[[Explainer], Explainer]:
    """Register ``function(forward, target_N, *, options…) -> Attribution | Neighbourhood`` under ``name``.

    The function's keyword-only parameters become the method's options; the other arguments are those of ``Method``.
    """

    def register(function: Explainer) -> Explainer:
        costs = cost, rate_key, cheaper_values
        looks = shows_regions, caution, overlay_signs
        method = Method(name, title, function, needs, drawing, shows, does_not_show, *costs, *looks)
        _METHODS.add(name, method)
        return function

    return register


def require_classes(forward: Forward, method: str) -> None:
    """UnsupportedModelError where the network has no classes to explain."""
    if not forward.spec.classes:
        raise UnsupportedModelError(
            f"{method} explains a class, and this network gives embeddings and has none; use occlusion, which "
            "explains how similar the image stays to itself, or neighbours",
            field="method",
        )


def available_methods() -> tuple[str, ...]:
    """All names, sorted."""
    return _METHODS.names()


def get(name: str) -> Method:
    """The method of that name; RequestError, with near matches and all names, for an unknown one."""
    return _METHODS.get(name)


def run(
    name: str,
    forward: Forward,
    target_N: Sequence[int] | Ints | None = None,
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Explain each row of ``forward`` for its own target class (None: the predicted classes).

    Where the model's precision is half, sweeps that say nothing else are made in half. Raises RequestError for an
    unknown method or option and for a value that is not among an option's choices, TargetError for a class that the
    model does not have, UnsupportedModelError for a method that needs the network where ``forward`` runs on exported
    graphs.
    """
    method = get(name)
    options = dict(options or {})
    require_options(method, options)
    if forward.precision == "half" and "precision" in method.options and options.get("strategy", "full") == "full":
        options.setdefault("precision", "half")
    return method.explain(forward, target_N, options)


def require_options(method: Method, options: Mapping[str, Any]) -> None:
    """RequestError for an option that the method does not have, and for a value that is not among its choices."""
    for key, value in options.items():
        _require_option(method, key, value)


def _require_option(method: Method, key: str, value: object) -> None:
    if key not in method.options:
        raise RequestError(
            f"{method.name} has no option {key!r}{near_matches(key, method.options)}; "
            f"there are: {', '.join(method.options) or 'none'}",
            field=f"options.{key}",
        )
    hint, _ = method.options[key]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if choices and not (isinstance(value, str) and value in choices):
        raise RequestError(f"no {key} {value!r}; there are: {', '.join(choices)}", field=f"options.{key}")
