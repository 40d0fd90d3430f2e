"""``convlens models``, and the models and graphs that other commands take by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from convlens.acceleration import accelerate, cached_graphs, can_export
from convlens.cli.console import print_lattice_left_out, print_message, print_result, print_warning, spinner
from convlens.engine.backend import Model, graphs_beside
from convlens.engine.method_calls import MethodCall, method_calls
from convlens.errors import ConvLensError, ModelError, RequestError
from convlens.explain import GraphModel
from convlens.explain.methods.deconvnet import depends_on_image
from convlens.models import Classifier, ModelName, choose_device, listing, load
from convlens.models.manifest import GRAPHS
from convlens.models.sources import source_names
from convlens.protocol.params import Params
from convlens.runtime.graph_contract import Strategy
from convlens.runtime.graph_set import GraphSet
from convlens.runtime.onnx_runtime import Providers
from convlens.types import ArithmeticPrecision, Step
from convlens.utils.cache_dir import default_folder

_DECONVNET = "deconvnet"


def models(
    name: Annotated[
        str,
        typer.Argument(
            help="Full name: show its spec. Source (timm), pattern ('resnet*') or part of a name: list the matches."
        ),
    ] = "",
) -> None:
    """List convolutional networks by name, or show one model's spec.

    Whether a method applies is checked when a model is loaded. A model that is not listed can still be loaded by name.
    """
    if ":" in name and not set("*[").intersection(name):
        _show_spec(name)
        return
    entries = [entry for entry in _matches(name) if entry.is_cnn_classifier]
    if not entries:
        raise ModelError(f"no convolutional network matches {name!r}; `convlens models` lists all of them")
    for entry in entries:
        print_result(entry.name if entry.weights_at_hand else f"{entry.name}  (weights not downloaded yet)")
    print_message(f"{len(entries)} convolutional networks")


def open_model(name: str, *, device: str, precision: ArithmeticPrecision) -> Model:
    """``graphs:FOLDER`` as exported graphs alone, every other name as a network."""
    source, _, folder = name.partition(":")
    if source != GRAPHS:
        return load(name, device=device, precision=precision)
    placed = choose_device(device)
    providers: Providers = "cuda" if placed.type == "cuda" else "cpu"
    return GraphModel.open(Path(folder), providers=providers, device_id=placed.index or 0, precision=precision)


def without_lattice(names: Sequence[str], network: Model, *, asked: Sequence[str]) -> list[str]:
    """The methods, less deconvnet where it was not asked for by name and the network's maps would be one lattice.

    A line says why, once. Of exported graphs, which do not show what they are made of, every method stays.
    """
    names = list(names)
    if _DECONVNET not in names or _DECONVNET in asked or not isinstance(network, Classifier):
        return names
    if depends_on_image(network):
        return names
    print_lattice_left_out(network.spec.name)
    names.remove(_DECONVNET)
    return names


def accelerated(classifier: Classifier, *, wanted: bool) -> Classifier:
    """The classifier with its graph from the cache, exported now where there is none, with a line that says so.

    As it is where that is not wanted, on a GPU (torch is faster there), without onnx, and where it does not succeed.
    """
    if not wanted or classifier.device.type != "cpu" or not can_export():
        return classifier
    name, announced = classifier.spec.name, False
    with spinner(f"opening the graph of {name}") as update:

        def show(step: Step) -> None:
            nonlocal announced
            if not announced:
                print_message(f"exporting {name} once for this machine; the graph is kept in {default_folder()}")
            announced = True
            update(f"exporting {name}: {step.stage}")

        try:
            return accelerate(classifier, on_step=show)
        except ConvLensError as error:
            print_warning(f"torch runs {name}, not its graph: {error.message}")
            return classifier


def open_sweep_graphs(model: Model, paths: Sequence[Path], params: Params) -> GraphSet | None:
    """The graphs for a network's occlusion sweeps: those given, else those that incremental sweeps cannot do without.

    RequestError where paths are given for a model that consists of graphs itself.
    """
    if not isinstance(model, Classifier):
        if paths:
            raise RequestError(f"{model.source} consists of graphs; put further ones into its folder, not --graphs")
        return None
    return graphs_beside(model, paths or _incremental_graphs(model, params))


def wants_sweeps(params: Params, strategy: Strategy) -> bool:
    """Whether the request asks for an occlusion sweep of that strategy."""
    return bool(_sweeps(params, strategy))


def _incremental_graphs(classifier: Classifier, params: Params) -> list[Path]:
    """A folder of graphs for each incremental sweep in the request, exported where the cache has none."""
    return [_incremental_graph(classifier, call) for call in _sweeps(params, "incremental")]


def _sweeps(params: Params, strategy: Strategy) -> list[MethodCall]:
    calls = method_calls(params, ())
    return [call for call in calls if call.method.name == "occlusion" and call.options["strategy"] == strategy]


def _incremental_graph(classifier: Classifier, call: MethodCall) -> Path:
    window, stride = call.options["window"], call.options["stride"]
    if not isinstance(window, int):
        raise RequestError("give the graphs of several incremental windows by --graphs", field="options.window")
    with spinner("exporting an incremental sweep"):
        return cached_graphs(classifier, kinds=["occlusion"], window=window, stride=stride, strategy="incremental")


def _matches(name: str) -> list[ModelName]:
    """All models of a source; those with the text in their name; or those whose whole name fits the pattern."""
    if not name or name in source_names():
        return list(listing(name or None))
    pattern = name if set("*?[").intersection(name) else f"*{name}*"
    return [
        entry
        for entry in listing()
        if fnmatchcase(entry.name, pattern) or fnmatchcase(entry.name.partition(":")[2], pattern)
    ]


def _show_spec(name: str) -> None:
    with spinner(f"loading {name}"):
        spec = load(name, device="cpu").spec
    for key, value in asdict(spec).items():
        if value in (None, ()):
            continue  # what most models do not have
        shown = f"{len(value)} ({', '.join(value[:3])}, …)" if key == "labels" else value
        print_result(f"{key:18} {shown}")
