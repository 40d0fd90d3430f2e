"""The configuration inside an archive: ``handlers/model-config/default.yaml``, overridden by options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from convlens.errors import ServerError
from convlens.torchserve.server_config import handlers_folder
from convlens.types import ArithmeticPrecision

# Option -> (TorchServe's key, smallest value). Checked here because TorchServe only warns of a value that it rejects,
# and takes another: a delay of 0 became one of 100 ms.
_NUMBERS = {
    "batch_size": ("batchSize", 1),
    "max_batch_delay_ms": ("maxBatchDelay", 1),
    "min_workers": ("minWorkers", 1),
    "max_workers": ("maxWorkers", 1),
    "response_timeout_s": ("responseTimeout", 1),
    "startup_timeout_s": ("startupTimeout", 1),
}


@dataclass(frozen=True)
class ArchiveOptions:
    """Overrides of ``default.yaml``; None keeps its value.

    ``device``: "auto" is the GPU where TorchServe sees one. ``methods``: the explanations that ``/explanations`` gives
    when a request names none. ``sweeps_at``: name of a second entry of the same archive, for requests that cost more
    than a few forward passes; the first entry then refuses those and names the second. Empty: one entry answers
    everything. ``precision`` is as for ``convlens.load``. ``section``: further keys of the configuration's ``convlens``
    section, which the handler reads, such as ``evaluation``, the evidence for methods that were recommended.
    ``handler``: the handler's file, by default ``handlers/convlens_handler.py``, or ``onnx_handler.py`` for an archive
    of graphs alone.
    """

    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    methods: tuple[str, ...] | None = None
    sweeps_at: str = ""
    precision: ArithmeticPrecision | None = None
    section: Mapping[str, Any] = field(default_factory=dict)
    handler: Path | None = None


def model_config(options: ArchiveOptions, *, gallery: str | None, graphs: str | None = None) -> str:
    """The YAML text. ``gallery`` and ``graphs`` are folders inside the archive. Raises ServerError."""
    values = _default() | _numbers(options) | _device(options)
    if values["maxWorkers"] < values["minWorkers"]:
        if options.max_workers is not None:
            raise ServerError(f"max_workers={values['maxWorkers']} is below min_workers={values['minWorkers']}")
        values["maxWorkers"] = values["minWorkers"]
    methods = _methods(options, values["convlens"], gallery=gallery)
    section = {**values["convlens"], "gallery": gallery, "graphs": graphs, **methods, "sweeps_at": options.sweeps_at}
    if options.precision is not None:
        section["precision"] = options.precision
    return str(yaml.safe_dump(values | {"convlens": section | dict(options.section)}, sort_keys=True))


def _default() -> dict[str, Any]:
    path = handlers_folder() / "model-config" / "default.yaml"
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise ServerError(f"cannot read {path}: {error}") from error


def _numbers(options: ArchiveOptions) -> dict[str, int]:
    values = {name: getattr(options, name) for name in _NUMBERS if getattr(options, name) is not None}
    for name, number in values.items():
        if number < _NUMBERS[name][1]:
            raise ServerError(f"{name}={number}: a whole number from {_NUMBERS[name][1]}")
    return {_NUMBERS[name][0]: number for name, number in values.items()}


def _device(options: ArchiveOptions) -> dict[str, str]:
    return {} if options.device == "auto" else {"deviceType": options.device}


def _methods(options: ArchiveOptions, section: Mapping[str, Any], *, gallery: str | None) -> dict[str, list[str]]:
    """The methods of the options, else those of ``default.yaml`` and, with a gallery, its neighbours."""
    if options.methods is not None:
        return {"methods": list(options.methods)}
    return {"methods": [*section["methods"], *(["neighbours"] if gallery else [])]}


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def require_name(name: str) -> str:
    """The name, if TorchServe and torch-model-archiver both accept it for a model. Raises ServerError."""
    if not _NAME.fullmatch(name):
        raise ServerError(f"model name {name!r}: letters, digits, '_' and '-' only, the first a letter or digit")
    return name
