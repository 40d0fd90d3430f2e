"""The parameters of a request, validated: unknown keys, wrong types and impossible values are refused by name."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NoReturn, Self, TypedDict

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from convlens.errors import ConvLensError, RequestError, near_matches
from convlens.protocol.negotiation import Media
from convlens.types import CurveKind, Neuron

# Strict: pydantic would else take "5" for 5 and True for 1.
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
Output = Literal["array", "overlay", "heatmap"]
Dtype = Literal["<f4", "<f2"]
Reduce = Literal["none", "abs_max", "sum"]
Size = Literal["model", "original"]

_Name = Annotated[str, Field(min_length=1, max_length=128)]
# It names arrays in files, so neither slashes nor what a shell or a terminal would take for something else.
_Id = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
# bool is an int to Python, but no index: hence strict.
_Index = Annotated[int, Field(strict=True, ge=0)]
_Label = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
LEAST_STEPS = 2  # of a curve
_MAX_KEYS = 64  # of one object of a request
_MAX_QUOTED = 100  # characters of what is quoted from a request: what it sends must not swell the reply


class NeuronTarget(BaseModel):
    """One unit of a layer: ``layer`` by its dotted name; without ``y`` and ``x`` where its channel is strongest."""

    model_config = STRICT

    layer: Annotated[str, Field(min_length=1, max_length=256)]
    channel: _Index
    y: _Index | None = None
    x: _Index | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.y is None) != (self.x is None):
            raise ValueError("y and x go together: give both or neither")
        return self

    def as_neuron(self) -> Neuron:
        return Neuron(self.layer, self.channel, self.y, self.x)


def _kind_of_target(target: object) -> str:
    return "neuron" if isinstance(target, Mapping | NeuronTarget) else "class"


# A class by its index or label, or a neuron. By a discriminator, so that an error names the branch that was meant.
Target = Annotated[
    Annotated[_Index | _Label, Tag("class")] | Annotated[NeuronTarget, Tag("neuron")], Discriminator(_kind_of_target)
]


class MethodParams(BaseModel):
    """One explanation asked for; ``id`` names it in the reply (default: the method's name)."""

    model_config = STRICT

    method: _Name
    id: _Id | None = None
    target: Target | None = None
    options: dict[str, Any] = Field(default_factory=dict)


def _from_bare_name(method: object) -> object:
    return {"method": method} if isinstance(method, str) else method


_NameOrMethod = Annotated[MethodParams, BeforeValidator(_from_bare_name, json_schema_input_type=_Name | MethodParams)]


def _each_once(kinds: list[CurveKind]) -> list[CurveKind]:
    return list(dict.fromkeys(kinds))


_Curves = Annotated[list[CurveKind], Field(min_length=1, max_length=2), AfterValidator(_each_once)]


class EvaluateParams(BaseModel):
    """The curves that come with each map of a class; each takes ``steps`` forward passes."""

    model_config = STRICT

    curves: _Curves = ["deletion", "insertion"]
    steps: int = Field(default=22, ge=LEAST_STEPS, le=100)

    @property
    def forwards(self) -> int:
        """Forward passes for one map."""
        return len(self.curves) * self.steps


def _kind_of_evaluate(evaluate: object) -> str:
    return "object" if isinstance(evaluate, Mapping | EvaluateParams) else "list"


Evaluate = Annotated[
    Annotated[_Curves, Tag("list")] | Annotated[EvaluateParams, Tag("object")], Discriminator(_kind_of_evaluate)
]


class Params(BaseModel):
    """The parameters of one request; every one has a default, so that a bare picture is a whole request.

    ``explain`` without ``methods`` asks for the default explanations. ``target`` holds for every method that names
    none itself; without any, the predicted class is explained.

    ``size``: maps and overlays on the grid the model saw, or at their place in the original picture, 0 around it.
    ``deadline_ms`` counts from ``sent_at`` (seconds since 1970; over REST also by the header X-Request-Start), where
    that is not said from when a worker took the request up. ``accept`` is the form of the reply, for clients that send
    no headers. ``thumbnails``: whether neighbours come with their small pictures. ``evaluate``: the curves that come
    with each map of a class, as a list or, with their number of steps, as an object.
    """

    model_config = STRICT

    explain: bool = False
    topk: int = Field(default=5, ge=1, le=100)
    target: Target | None = None
    methods: Annotated[list[_NameOrMethod], Field(max_length=32)] | None = None
    output: Annotated[list[Output], Field(max_length=3)] = Field(default=["array", "overlay"])
    dtype: Dtype = "<f4"
    reduce: Reduce = "none"
    size: Size = "model"
    neighbours: int | None = Field(default=None, ge=1, le=1000)
    thumbnails: bool = True
    evaluate: Evaluate | None = None
    accept: Media | None = None
    deadline_ms: Annotated[float, Field(gt=0, le=86_400_000)] | None = None
    sent_at: Annotated[float, Field(ge=0)] | None = None
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    request_id: Annotated[str, Field(max_length=128, pattern=r"^[\x21-\x7e]*$")] = ""

    @property
    def evaluation(self) -> EvaluateParams | None:
        """``evaluate`` in its long form."""
        return EvaluateParams(curves=self.evaluate) if isinstance(self.evaluate, list) else self.evaluate


class RequestParams(TypedDict, total=False):
    """The fields of Params that a client's caller may give, each as docs/rest.md describes it; the server checks them.

    ``output`` is ["array"] by default: numbers, to draw or to compute with. ``target`` is a class by index or by label,
    or a neuron: {"layer": "blocks.2.0", "channel": 3}, with or without "y" and "x". ``evaluate`` is a list of curves,
    or {"curves": ["deletion"], "steps": 10}.
    """

    # Written out, because type checkers can derive no TypedDict from a model; a test holds the two together.
    topk: int
    target: int | str | Mapping[str, Any] | None
    methods: Sequence[str | Mapping[str, Any]]
    output: Sequence[Output]
    dtype: Dtype
    reduce: Reduce
    size: Size
    neighbours: int
    thumbnails: bool
    evaluate: Sequence[CurveKind] | Mapping[str, Any]
    deadline_ms: float
    seed: int
    request_id: str


def parse_params(params: Mapping[str, Any]) -> Params:
    """The validated parameters; RequestError naming the first offending field and what would do."""
    require_few_keys(params)
    try:
        return Params.model_validate(dict(params))
    except ValidationError as error:
        raise_invalid(error, Params)


def require_few_keys(value: object, place: str = "", *, depth: int = 3) -> None:
    """RequestError for an object of very many keys, also inside this one.

    pydantic makes an error of each unknown one: of a million it took 3 s.
    """
    if isinstance(value, Mapping):
        if len(value) > _MAX_KEYS:
            raise RequestError(
                f"{place or 'an object of the request'} has {len(value)} keys; at most {_MAX_KEYS} are allowed",
                field=place or None,
            )
        items: Iterable[tuple[object, object]] = value.items()
    else:
        items = enumerate(value[:_MAX_KEYS]) if isinstance(value, list) else ()
    if depth:
        for key, inner in items:
            require_few_keys(inner, f"{place}.{str(key)[:_MAX_QUOTED]}".lstrip("."), depth=depth - 1)


def raise_invalid(error: ValidationError, model: type[BaseModel], *, where: str = "") -> NoReturn:
    """Raise the first of pydantic's errors as a RequestError; ``where`` is the place of a method's options."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = _option_path(first["loc"]) if where else _path(first["loc"])
    field = ".".join([where, *path] if where else path)
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])[:_MAX_QUOTED]
        known = list(_model_at(model, first["loc"]).model_fields)
        hint = near_matches(key, known) or ";"
        raise RequestError(
            f"unknown key {key!r}{hint} known keys: {', '.join(known) or 'none'}", field=field
        ) from error
    message = _message(path, first["type"]) or first["msg"].removeprefix("Value error, ").lower()
    # reprlib: repr fails on what is nested deeply, and JSON may be.
    raise RequestError(f"{field or 'params'}: {message}; got {reprlib.repr(first['input'])}", field=field) from error


def _message(path: list[str], error_type: str) -> str:
    # pydantic's own message names our classes and the tags of the union, which no client knows.
    if path[-1:] == ["target"] and error_type != "value_error":
        return "should be a class index from 0, a label, or a neuron's layer and channel"
    if path == ["evaluate"] and error_type == "list_type":
        return 'should be a list of "deletion" and "insertion", or an object with curves and steps'
    return "should be a method's name, or an object that names it" if error_type == "model_type" else ""


def _path(loc: tuple[int | str, ...]) -> list[str]:
    # pydantic puts validators ("function-before[…]") and, after a union, its branches into the place.
    path = [str(part) for part in loc if not str(part).startswith("function-")]
    if path[:1] == ["evaluate"]:
        return [*path[:1], *path[2:]]
    if "target" not in path:
        return path
    end = path.index("target") + 1
    return [*path[:end], *path[end + 1 :]] if path[end : end + 1] == ["neuron"] else path[:end]


def _option_path(loc: tuple[int | str, ...]) -> list[str]:
    # An option's name and positions inside it; what is between them is a branch of a union.
    return [str(part) for n, part in enumerate(loc) if n == 0 or isinstance(part, int)]


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    if "target" in loc[:-1]:
        return NeuronTarget
    if loc[0] == "evaluate" and len(loc) > 1:
        return EvaluateParams
    return MethodParams if model is Params and loc[0] == "methods" and len(loc) > 2 else model


@contextmanager
def field_prefix(place: str) -> Iterator[None]:
    """Errors raised inside get a ``field`` that starts at this place of the request."""
    try:
        yield
    except ConvLensError as error:
        add_field_prefix(error, place)
        raise


def add_field_prefix(error: ConvLensError, place: str) -> ConvLensError:
    """The same error, its ``field`` starting at this place of the request."""
    error.field = ".".join(part for part in (place, error.field) if part) or None
    return error
