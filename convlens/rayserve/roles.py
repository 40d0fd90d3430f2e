"""Which deployment a request is for, by its parameters alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convlens.engine.method_calls import entry_calls
from convlens.protocol.params import Params
from convlens.protocol.requests import requested_params

if TYPE_CHECKING:
    from convlens.engine.engine import Engine
    from convlens.rayserve.config import Role


def role_for(parts: Mapping[str, Any], headers: Mapping[str, str], engine: Engine) -> Role:
    """``sweeps`` where an image of the call takes many forward passes, ``neighbours`` where nothing else is asked for.

    Raises as ``parse_request`` does.
    """
    asked = requested_params(
        parts,
        headers,
        explain=str(headers.get("explain", "")).lower() == "true",
        path_method=str(headers.get("url_path", "")).strip("/"),
    )
    roles = {_role(params, engine) for params in asked}
    if "sweeps" in roles:
        return "sweeps"
    return "neighbours" if roles == {"neighbours"} else "quick"


def _role(params: Params, engine: Engine) -> Role:
    calls, _ = entry_calls(params, engine.options, engine.model.spec.input_size)
    if params.evaluation or any(call.heavy for call in calls):
        return "sweeps"
    only_neighbours = bool(calls) and all(call.method.needs == "embedding" for call in calls)
    return "neighbours" if only_neighbours else "quick"
