"""``convlens evaluate``: which explanation to trust, on one's own model and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convlens import image, visualization
from convlens.cli.console import (
    print_message,
    print_result,
    print_skipped,
    print_table,
    progress_bar,
    spinner,
)
from convlens.cli.interrupts import resumable
from convlens.cli.models import accelerated, open_model, without_lattice
from convlens.cli.options import (
    DEFAULT_MODEL,
    AccelerateOption,
    DeviceOption,
    ImagesToRead,
    MethodSettings,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    RayOption,
    ResumedFolder,
    SeedOption,
    TrueClassesOption,
    method_params,
    parse_methods,
    parse_names,
)
from convlens.engine.method_calls import method_calls
from convlens.errors import RequestError
from convlens.evaluation.baselines import BASELINES
from convlens.evaluation.evaluate import Evaluation, EvaluationCluster
from convlens.evaluation.evaluate import evaluate as evaluate_images
from convlens.evaluation.journal import MAPS, PAGE, TABLES, require_evaluation_dir
from convlens.evaluation.labels import LabelsFrom
from convlens.evaluation.metrics import GROUPS, metric, metric_names
from convlens.evaluation.perturbation import CurveProtocol, Substrate
from convlens.evaluation.picture import PictureEvaluator
from convlens.evaluation.tables import write_methods_csv, write_pictures_csv
from convlens.evaluation.wording import capitalised, method_name
from convlens.explain import GraphModel, get
from convlens.features.image_list import find_images
from convlens.models import Classifier
from convlens.protocol.params import parse_params
from convlens.report.evaluation_page import write_evaluation_page
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.types import ArithmeticPrecision

_SMOOTH = 2.0  # pixels; as overlays of gradients are drawn everywhere


def evaluate(
    images: ImagesToRead,
    output: ResumedFolder,
    methods: Annotated[
        list[str], typer.Option(help="Methods, comma-separated, or `all`; may be repeated. Default: all.")
    ] = ["all"],  # noqa: B006 - typer's way; never changed
    metrics: Annotated[
        list[str],
        typer.Option(
            help="Metrics, comma-separated, or `all`; may be repeated. There are insertion, deletion, road, "
            "infidelity, sensitivity, sparseness, randomisation and localisation. Default: insertion, deletion, "
            "sparseness, randomisation, and localisation with --boxes."
        ),
    ] = [],  # noqa: B006
    baselines: Annotated[
        list[str],
        typer.Option(
            help="Maps that know nothing of the network, comma-separated, or `none`; may be repeated. Default: all."
        ),
    ] = [],  # noqa: B006
    model: ModelOption = DEFAULT_MODEL,
    labels: TrueClassesOption = "",
    boxes: Annotated[
        Path | None,
        typer.Option(help="Objects for localisation: COCO JSON, a folder of VOC XML or of mask PNGs, or a CSV table."),
    ] = None,
    target: Annotated[
        Literal["predicted", "true"], typer.Option(help="Class to explain: the predicted or the true one.")
    ] = "predicted",
    option: MethodSettings = [],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Steps of the insertion and deletion curves.")] = 22,
    insertion_substrate: Annotated[Substrate, typer.Option(help="What missing pixels show during insertion.")] = "blur",
    deletion_substrate: Annotated[Substrate, typer.Option(help="What missing pixels show during deletion.")] = "mean",
    costly_pictures: Annotated[
        int,
        typer.Option(
            min=1,
            help="Images for the costly metrics: road, infidelity, sensitivity, randomisation.",
        ),
    ] = 8,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    accelerate: AccelerateOption = True,
    workers: Annotated[
        int, typer.Option(min=0, help="Images evaluated at once; 0 for one a core on a CPU, and one on a GPU.")
    ] = 0,
    ray: RayOption = "",
    overwrite: OverwriteOption = False,
) -> None:
    """Measure which explanations of this model can be trusted, and say it in words, tables and a page."""
    keep_freed_memory()
    require_evaluation_dir(output, overwrite=overwrite)
    files = find_images(images)
    names = parse_methods(methods)
    _with_options(names, option)  # what is wrong with them is said before the model is loaded
    wanted = _metrics(metrics, boxes)
    with spinner(f"loading {model}"):
        network = open_model(model, device=device, precision=precision)
    named = _with_options(without_lattice(names, network, asked=parse_names(methods)), option)
    if isinstance(network, Classifier):
        network = accelerated(network, wanted=accelerate)
    evaluated = 0

    def kept() -> str:
        return f"{evaluated} of {len(files)} images are evaluated and kept in {output}"

    with resumable(kept), progress_bar("evaluating", len(files)) as bar:

        def show(done: int, _: int, stage: str) -> None:
            nonlocal evaluated
            evaluated = done
            bar.update(bar.task_ids[0], completed=done, description=stage.replace("_", " ") or "evaluating")

        evaluation = evaluate_images(
            network,
            files,
            methods=named,
            metrics=wanted,
            baselines=[] if baselines == ["none"] else parse_names(baselines) or BASELINES,
            labels=_labels(labels),
            boxes=boxes,
            target=target,
            protocol=CurveProtocol(steps, insertion_substrate, deletion_substrate, seed),
            costly_pictures=costly_pictures,
            seed=seed,
            out=output,
            overwrite=overwrite,
            write=lambda folder, result: _write(folder, result, network, files),
            workers=workers or None,
            cluster=_cluster(ray, model, device, precision, network),
            on_picture=show,
        )
    _show(evaluation, output)


def _with_options(names: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The methods with their options, complete and checked as a request's are."""
    calls = method_calls(parse_params({"methods": method_params(names, settings)}), ())
    return {call.method.name: dict(call.options) for call in calls}


def _metrics(values: Sequence[str], boxes: Path | None) -> list[str] | None:
    """None where none are named: the library then chooses."""
    every = [name for name in GROUPS if boxes or name != "localisation"]
    return [name for value in parse_names(values) for name in (every if value == "all" else [value])] or None


def _labels(text: str) -> LabelsFrom | None:
    if not text:
        return None
    return "folder" if text == "folder" else Path(text)


def _write(folder: Path, evaluation: Evaluation, model: Classifier | GraphModel, files: Mapping[str, Path]) -> None:
    """Page and tables beside the records; ``folder`` is a draft."""
    names = metric_names(evaluation.settings["metrics"])
    write_methods_csv(folder / TABLES[0], evaluation.summary)
    write_pictures_csv(folder / TABLES[1], evaluation.records, names)
    write_evaluation_page(
        folder,
        settings=evaluation.settings,
        summary=evaluation.summary,
        verdict=evaluation.verdict,
        records=evaluation.records,
        maps=_draw_maps(folder, evaluation, model, files),
        titles={name: capitalised(method_name(name)) for name in evaluation.summary["methods"]},
    )


def _draw_maps(
    folder: Path, evaluation: Evaluation, model: Classifier | GraphModel, files: Mapping[str, Path]
) -> dict[str, dict[str, str]]:
    """Each method's maps of its best and its worst images, laid over them: method -> image -> file in ``folder``."""
    (folder / MAPS).mkdir(exist_ok=True)
    evaluator = PictureEvaluator(model, evaluation.plan)
    target = {record["id"]: record["target"] for record in evaluation.records if "error" not in record}
    drawn: dict[str, dict[str, str]] = {}
    methods = evaluation.settings["methods"]
    with progress_bar("drawing", len(methods)) as bar:
        for number, name in enumerate(methods):
            result, drawn[name] = evaluation.summary["methods"][name], {}
            for position, id in enumerate([*result["best"], *result["worst"]]):
                file = f"{MAPS}/{number}-{position}.jpg"
                prepared = image.prepare(image.read_channels(files[id], model.spec.channels), model.spec)
                map_HW = evaluator.map_of(name, prepared.x_CHW, target[id], id)
                signed = get(name).drawing == "signed"
                over_HWC = visualization.overlay(prepared.display_HWC, map_HW, signed=signed, smooth=_SMOOTH)
                (folder / file).write_bytes(image.encode_jpeg(over_HWC))
                drawn[name][id] = file
            bar.advance(bar.task_ids[0])
    return drawn


def _show(evaluation: Evaluation, output: Path) -> None:
    summary, names = evaluation.summary, metric_names(evaluation.settings["metrics"])
    print_skipped((failure["id"], failure["reason"]) for failure in summary["failures"])
    shown = [name for name in names if any(name in each["metrics"] for each in summary["methods"].values())][:5]
    rows = [
        [method_name(name), *(_cell(summary["methods"][name]["metrics"].get(each)) for each in shown)]
        for name in [*summary["ranking"], *(name for name in summary["methods"] if name not in summary["ranking"])]
    ]
    print_table(["method", *(metric(each).title for each in shown)], rows)
    for text in (evaluation.verdict["headline"], *evaluation.verdict["notes"]):
        print_message(text)
    print_result(f"page: {output / PAGE}")


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if not estimate:
        return ""
    if estimate["low"] is None:
        return f"{estimate['mean']:.3f}"
    return f"{estimate['mean']:.3f} ± {(estimate['high'] - estimate['low']) / 2:.3f}"


def _cluster(
    address: str, model: str, device: str, precision: ArithmeticPrecision, network: Classifier | GraphModel
) -> EvaluationCluster | None:
    if not address:
        return None
    if isinstance(network, GraphModel):
        raise RequestError("a cluster's workers load networks; leave --ray out for a model of graphs", field="ray")
    from convlens.jobs.ray_cluster import EvaluationActors

    by_graph = network.graphs is not None
    return EvaluationActors(address, model, device=device, precision=precision, accelerated=by_graph)
