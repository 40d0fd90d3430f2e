"""Options that several commands share, and how their text becomes parameters."""

from __future__ import annotations

import json
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
        return [name for name in explain.methods() if name != "neighbours"]
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


def _value(text: str) -> Any:
    """Numbers and true/false as such, everything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
