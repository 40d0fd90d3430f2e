"""Options that several commands share, and how their text becomes parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import typer

from convlens import explain
from convlens.errors import RequestError

MODEL = typer.Option(help="Model name, such as torchvision:resnet50; see `convlens models`.")
METHODS = typer.Option(help="Explanations, comma-separated; or `all`.")


def wanted_names(methods: str) -> list[str]:
    """The methods' names, each checked; ``all`` stands for every one but neighbours, which needs a gallery."""
    if methods.strip() == "all":
        return [name for name in explain.available_methods() if name != "neighbours"]
    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        explain.get(name)
    return names


def method_params(names: Sequence[str], settings: Sequence[str]) -> list[dict[str, Any]]:
    """The ``methods`` of a request, with settings such as ``occlusion.window=48`` in their places."""
    asked: dict[str, dict[str, Any]] = {name: {"method": name, "options": {}} for name in names}
    for setting in settings:
        name, dot, rest = setting.partition(".")
        key, equals, value = rest.partition("=")
        if not dot or not equals or name not in asked:
            raise RequestError(
                f"--set {setting} should read METHOD.OPTION=VALUE with one of the methods asked for: {', '.join(asked)}"
            )
        asked[name]["options"][key] = _value(value)
    return list(asked.values())


NEURON = typer.Option(
    help="A neuron to explain instead of a class: LAYER:CHANNEL, where that channel is strongest, or LAYER:CHANNEL@Y,X."
)


def asked_target(target: str, neuron: str) -> dict[str, Any]:
    """The request's ``target``, of a class by label or index or of a neuron; empty where neither is given."""
    if target and neuron:
        raise RequestError("--target names a class and --neuron a neuron; give one of them", field="target")
    if neuron:
        return {"target": _neuron(neuron)}
    if target:
        return {"target": int(target) if target.isdigit() else target}
    return {}


def _neuron(text: str) -> dict[str, Any]:
    found = re.fullmatch(r"(?P<layer>[^:@]+):(?P<channel>[0-9]+)(?:@(?P<y>[0-9]+),(?P<x>[0-9]+))?", text)
    if found is None:
        raise RequestError(
            f"--neuron {text} should read LAYER:CHANNEL or LAYER:CHANNEL@Y,X, such as blocks.2.0:12@5,7", field="target"
        )
    numbers = {name: int(found[name]) for name in ("channel", "y", "x") if found[name] is not None}
    return {"layer": found["layer"], **numbers}


def _value(text: str) -> Any:
    """Numbers and true/false as such, everything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
