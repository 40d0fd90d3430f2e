"""What a request may ask, validated: unknown keys, wrong types and impossible values are refused by name."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from convlens import explain
from convlens.errors import RequestError, near_matches

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

Output = Literal["array", "overlay", "heatmap"]
Dtype = Literal["<f4", "<f2"]
Reduce = Literal["none", "abs_max", "sum"]
Name = Annotated[str, Field(min_length=1, max_length=128)]
# A class by its index, or by its label. bool is an int to Python, but not to us: hence strict.
Target = Annotated[int, Field(strict=True, ge=0)] | Annotated[str, Field(strict=True, min_length=1, max_length=256)]


class MethodParams(BaseModel):
    """One explanation asked for; ``id`` names it in the reply (default: the method's name)."""

    model_config = STRICT

    method: Name
    id: Name | None = None
    target: Target | None = None
    options: dict[str, Any] = Field(default_factory=dict)


def _bare_name(given: object) -> object:
    return {"method": given} if isinstance(given, str) else given


class Params(BaseModel):
    """The parameters of one request; every one has a default, so that a bare picture is a whole request.

    ``explain`` without ``methods`` asks for the default explanations. ``target`` holds for every method that names
    none itself; without any, the predicted class is explained.
    """

    model_config = STRICT

    explain: bool = False
    topk: int = Field(default=5, ge=1, le=100)
    target: Target | None = None
    methods: Annotated[list[Annotated[MethodParams, BeforeValidator(_bare_name)]], Field(max_length=16)] | None = None
    output: Annotated[list[Output], Field(max_length=3)] = Field(default=["array", "overlay"])
    dtype: Dtype = "<f4"
    reduce: Reduce = "none"
    neighbours: int | None = Field(default=None, ge=1, le=1000)
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    request_id: Annotated[str, Field(max_length=128, pattern=r"^[\x21-\x7e]*$")] = ""


@dataclass(frozen=True)
class Request:
    """A decoded picture (RGB) and what is asked about it."""

    picture: Image.Image
    params: Params


@dataclass(frozen=True)
class Job:
    """One explanation to compute, with its options complete and checked."""

    id: str
    method: str
    target: int | str | None
    options: Mapping[str, Any]


def parse_params(given: Mapping[str, Any]) -> Params:
    """The parameters, or RequestError naming the first offending field and what would do."""
    try:
        return Params.model_validate(dict(given))
    except ValidationError as error:
        _refuse(error, Params)


def jobs(params: Params, default_methods: Iterable[str]) -> list[Job]:
    """The explanations that the parameters ask for, in their order; RequestError for an unknown method or option."""
    asked = list(params.methods or [])
    if params.explain and params.methods is None:
        asked = [MethodParams(method=name) for name in default_methods]
    if params.neighbours is not None and all(one.method != "neighbours" for one in asked):
        asked.append(MethodParams(method="neighbours"))
    ids = _unique_ids(asked)
    return [_job(one, name, params) for one, name in zip(asked, ids, strict=True)]


def _job(one: MethodParams, name: str, params: Params) -> Job:
    method = explain.get(one.method)
    shared = {"k": params.neighbours, "seed": params.seed}
    inherited = {key: value for key, value in shared.items() if key in method.options and value is not None}
    model = options_model(one.method)
    try:
        options = model.model_validate(inherited | one.options).model_dump()
    except ValidationError as error:
        _refuse(error, model, where=f"{one.method}.options")
    target = one.target if one.target is not None else params.target
    return Job(name, one.method, target, options)


@functools.cache
def options_model(method: str) -> type[BaseModel]:
    """A pydantic model of the method's keyword options, made from its signature."""
    fields: dict[str, Any] = dict(explain.get(method).options)
    return create_model(f"{method}_options", __config__=STRICT, **fields)


def _unique_ids(asked: Iterable[MethodParams]) -> list[str]:
    ids: list[str] = []
    for one in asked:
        if one.id in ids:
            raise RequestError(f"two methods have the id {one.id!r}; give each its own", field="methods")
        base, name, count = one.id or one.method, one.id or one.method, 1
        while name in ids:
            count += 1
            name = f"{base}-{count}"
        ids.append(name)
    return ids


def _refuse(error: ValidationError, model: type[BaseModel], *, where: str = "") -> NoReturn:
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained")))
    field = ".".join(part for part in (where, path) if part)
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = list(_model_at(model, first["loc"]).model_fields)
        hint = near_matches(key, known) or ";"
        raise RequestError(
            f"unknown key {key!r}{hint} known keys: {', '.join(known) or 'none'}", field=field
        ) from error
    shown = repr(first["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise RequestError(f"{field or 'params'}: {first['msg'].lower()}; got {shown}", field=field) from error


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel]:
    return MethodParams if model is Params and loc[0] == "methods" and len(loc) > 2 else model
