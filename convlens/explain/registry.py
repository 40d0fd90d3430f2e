"""The explanation methods by name. A new method is one new file with a decorated function in this folder."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from convlens.errors import RequestError, UnsupportedModelError, near_matches
from convlens.explain.forward import Forward
from convlens.explain.sweeps.autotune import SweepAutotuner
from convlens.explain.torch_forward import ForwardPass
from convlens.types import Ints, Result
from convlens.utils.registry import Registry

Needs = Literal["gradient", "scores", "embedding", "model"]
Drawing = Literal["magnitude", "signed", "picture", "thumbnails"]
Explainer = Callable[..., Result]
Cost = Callable[[Mapping[str, Any], int], float]
Pace = Callable[[Mapping[str, Any], int, SweepAutotuner], str]
Cheaper = Callable[[Mapping[str, Any]], tuple[str, range]]


def _few_forwards(_: Mapping[str, Any], __: int) -> float:
    return 3.0  # one forward and one backward, which costs about two


def _one_pace(_: Mapping[str, Any], __: int, ___: SweepAutotuner) -> str:
    return ""


def _nothing_cheaper(_: Mapping[str, Any]) -> tuple[str, range]:
    return "", range(0)


@dataclass(frozen=True)
class Method:
    """``needs`` tells the engine what to share between rows, ``drawing`` how the raw values become a picture.

    ``cost(options, side)`` estimates the work on one picture of ``side`` pixels, in forward passes; calls of the same
    ``pace(options, side, sweeps)`` take about the same seconds for that. ``cheaper(options)`` names the option that
    makes it cheaper, and its values from the next cheaper one to the cheapest.
    """

    name: str
    title: str
    run: Explainer
    needs: Needs
    drawing: Drawing
    shows: str
    does_not_show: str
    cost: Cost
    pace: Pace
    cheaper: Cheaper

    @functools.cached_property
    def options(self) -> Mapping[str, tuple[Any, Any]]:
        """Option name -> (type, possibly Annotated with its bounds; default)."""
        hints = get_type_hints(self.run, include_extras=True)
        parameters = inspect.signature(self.run).parameters.values()
        return {p.name: (hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


_METHODS: Registry[Method] = Registry("convlens.explain.methods", noun="method", error=RequestError, field="method")


def explainer(
    name: str,
    *,
    title: str,
    needs: Needs,
    drawing: Drawing,
    shows: str,
    does_not_show: str,
    cost: Cost = _few_forwards,
    pace: Pace = _one_pace,
    cheaper: Cheaper = _nothing_cheaper,
) -> Callable[[Explainer], Explainer]:
    """Register ``function(forward, target_N, *, options…) -> Attribution | Neighbourhood`` under ``name``."""

    def register(function: Explainer) -> Explainer:
        method = Method(name, title, function, needs, drawing, shows, does_not_show, cost, pace, cheaper)
        _METHODS.add(name, method)
        return function

    return register


def available_methods() -> tuple[str, ...]:
    """All names, sorted."""
    return _METHODS.names()


def get(name: str) -> Method:
    """The method of that name, or RequestError with the names there are."""
    return _METHODS.get(name)


def run(
    name: str,
    forward: Forward,
    target_N: Sequence[int] | Ints | None = None,
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Explain each row of ``forward`` for its own target (None: the predicted class).

    Raises RequestError for an unknown method or option and for a word that is not among an option's, TargetError for a
    class the model does not have.
    """
    method = get(name)
    given = dict(options or {})
    for key, value in given.items():
        if key not in method.options:
            raise RequestError(
                f"{name} has no option {key!r}{near_matches(key, method.options)}; "
                f"there are: {', '.join(method.options) or 'none'}",
                field=f"options.{key}",
            )
        words = _words(method.options[key][0])
        if words and not (isinstance(value, str) and value in words):
            raise RequestError(f"no {key} {value!r}; there are: {', '.join(words)}", field=f"options.{key}")
    if method.needs == "model" and not isinstance(forward, ForwardPass):
        raise UnsupportedModelError(
            f"{name} needs the network itself, and this model consists of graphs; serve it with --runtime torch",
            field="method",
        )
    if method.needs == "gradient":
        forward.record()  # before the targets are looked up in the logits, lest a second forward be made for them
    return method.run(forward, forward.targets(target_N), **given)


def _words(hint: Any) -> tuple[str, ...]:
    """The words an option takes, where it takes only certain ones."""
    return get_args(hint) if get_origin(hint) is Literal else ()
