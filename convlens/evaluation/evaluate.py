"""Which explanation to trust: every method and baseline on the user's own model and images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from convlens.errors import RequestError, UnsupportedModelError
from convlens.evaluation.baselines import BASELINES, require_baselines
from convlens.evaluation.boxes import Objects, objects_by_id, read_boxes
from convlens.evaluation.concurrent import ConcurrentEvaluators, default_workers, require_workers
from convlens.evaluation.journal import EvaluationDir, open_evaluation_dir
from convlens.evaluation.labels import LabelsFrom, true_classes
from convlens.evaluation.metrics import GROUPS, require_groups
from convlens.evaluation.perturbation import CurveProtocol
from convlens.evaluation.picture import EvaluationPlan, Picture, PictureEvaluator, Record
from convlens.evaluation.road import FRACTIONS
from convlens.evaluation.stages import Stage, stages
from convlens.evaluation.summary import summarise
from convlens.evaluation.verdict import verdict
from convlens.explain import GraphModel, available_methods, get
from convlens.explain.forward import OnStep
from convlens.explain.registry import require_options
from convlens.features.image_list import find_images
from convlens.models import Classifier
from convlens.types import no_op

_VERSION = 1
_STAGES = 6  # each but the first is randomised in two ways, and each makes every map anew
COSTLY_PICTURES = 8
DEFAULT_METRICS = ("insertion", "deletion", "sparseness", "randomisation")
Target = Literal["predicted", "true"]
OnPicture = Callable[[int, int, str], None]
Methods = Iterable[str] | Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """What came of it: the settings, a record for each image, and what they say together (docs/evaluation.md)."""

    plan: EvaluationPlan
    settings: Mapping[str, Any]
    records: Sequence[Record]
    summary: Mapping[str, Any]
    verdict: Mapping[str, Any]

    @property
    def recommended(self) -> tuple[str, ...]:
        """The methods to use with this model; empty where none was shown to be better than a baseline."""
        return tuple(self.verdict["recommended"])


class EvaluationCluster(Protocol):
    """Other processes that evaluate the images."""

    def records(self, pictures: Iterable[Picture], plan: EvaluationPlan) -> Generator[Record]:
        """A record for each image, in their order."""


def evaluate(
    model: Classifier | GraphModel,
    images: Path | str | Sequence[Path | str] | Mapping[str, Path],
    *,
    methods: Methods | None = None,
    metrics: Iterable[str] | None = None,
    baselines: Iterable[str] = BASELINES,
    labels: LabelsFrom | None = None,
    boxes: Path | str | Objects | None = None,
    target: Target = "predicted",
    protocol: CurveProtocol | None = None,
    costly_pictures: int = COSTLY_PICTURES,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
    write: Callable[[Path, Evaluation], None] = no_op,
    workers: int | None = None,
    cluster: EvaluationCluster | None = None,
    on_picture: OnPicture = no_op,
) -> Evaluation:
    """Measure how far the maps of each method can be believed (docs/evaluation.md says how).

    ``images`` is a folder, files, a list of paths, or files by id. ``methods`` are names, or names with their options;
    by default every method of the model. ``metrics`` are names of ``GROUPS``, by default ``DEFAULT_METRICS`` as far as
    the model shows its parts, and localisation with ``boxes``; costly ones are measured on ``costly_pictures`` of the
    images, evenly spread. ``labels`` gives the true classes: "folder" (each image lies in a
    folder named after its class) or a CSV table; ``target`` is the class to explain. ``boxes`` marks the objects for
    localisation: a file or folder that ``read_boxes`` reads, or objects by image.

    With a folder ``out`` the records are kept there as they are made: killed and called again, it resumes and ends with
    the records of one run; ``write`` may add files to the folder before it is complete. ``workers`` images are
    evaluated at once, by default one a core on a CPU. ``on_picture`` is called with the images done, their number, and
    what is worked on, the latter by the workers' threads. Raises RequestError for unknown names, and as
    ``open_evaluation_dir`` does.
    """
    files = dict(images) if isinstance(images, Mapping) else find_images([Path(path) for path in _as_list(images)])
    named = _with_options(model, methods)
    groups, parts = _metrics(model, metrics, boxes)
    plan = EvaluationPlan(
        named, require_baselines(tuple(baselines)), groups, protocol or CurveProtocol(seed=seed), seed, parts
    )
    _require(model, plan, costly_pictures, target, labels, boxes)
    require_workers(model, workers)
    classes, objects = true_classes(list(files), labels, model.spec.labels), _objects(boxes, files)
    pictures = _pictures(files, classes, objects, target, costly_pictures)
    settings = _settings(model, plan, files, objects, target, costly_pictures)
    # Of all images, though few may be left: with another share of the cores the last digits would differ.
    workers = workers or default_workers(model, plan, len(pictures))
    run = _Run(model, plan, pictures, settings, workers, cluster, on_picture)
    if out is None:
        return run.result(run.records([]))
    with open_evaluation_dir(out, settings, overwrite=overwrite) as folder:
        evaluation = run.result(run.records(folder.resumed, folder))
        result = {"settings": settings, "summary": evaluation.summary, "verdict": evaluation.verdict}
        folder.publish(result, lambda draft: write(draft, evaluation))
    return evaluation


@dataclass(frozen=True)
class _Run:
    model: Classifier | GraphModel
    plan: EvaluationPlan
    pictures: Sequence[Picture]
    settings: Mapping[str, Any]
    workers: int
    cluster: EvaluationCluster | None
    on_picture: OnPicture

    def records(self, resumed: list[Record], folder: EvaluationDir | None = None) -> list[Record]:
        """Those that were resumed, and one for each further image."""
        records, total = list(resumed), len(self.pictures)
        self.on_picture(len(records), total, "")
        with closing(self._further(self.pictures[len(records) :], lambda: len(records))) as further:
            for record in further:
                if folder is not None:
                    folder.add(record)
                records.append(record)
                self.on_picture(len(records), total, "")
        return records

    def _further(self, pictures: Sequence[Picture], done: Callable[[], int]) -> Generator[Record]:
        cluster = self.cluster
        if cluster is None and self.workers > 1:
            cluster = ConcurrentEvaluators(self.model, self.workers, on_step=self._on_step(done))
        if cluster is not None:
            yield from cluster.records(pictures, self.plan)
            return
        evaluator = PictureEvaluator(self.model, self.plan, on_step=self._on_step(done))
        for picture in pictures:
            yield evaluator.record(picture)

    def _on_step(self, done: Callable[[], int]) -> OnStep:
        return lambda step: self.on_picture(done(), len(self.pictures), step.stage)

    def result(self, records: Sequence[Record]) -> Evaluation:
        if all("error" in record for record in records):
            reasons = "".join(f"; {record['id']}: {record['error']}" for record in records[:3])
            raise RequestError(f"none of {len(records)} images could be used{reasons}")
        summary = summarise(records, self.settings)
        return Evaluation(self.plan, self.settings, records, summary, verdict(summary))


def _as_list(images: Path | str | Sequence[Path | str]) -> Sequence[Path | str]:
    return [images] if isinstance(images, Path | str) else images


def _with_options(model: Classifier | GraphModel, methods: Methods | None) -> dict[str, dict[str, Any]]:
    if methods is None:
        every = model.methods if isinstance(model, GraphModel) else available_methods()
        return {name: {} for name in every if name != "neighbours"}
    named = methods if isinstance(methods, Mapping) else {name: {} for name in methods}
    for name, options in named.items():
        if get(name).drawing == "thumbnails":
            raise RequestError(f"{name} gives images and no map, so there is nothing to evaluate", field="methods")
        require_options(get(name), options)
    return {name: dict(options) for name, options in named.items()}


def _require(
    model: Classifier | GraphModel,
    plan: EvaluationPlan,
    costly: int,
    target: Target,
    labels: LabelsFrom | None,
    boxes: object,
) -> None:
    if not model.spec.classes:
        raise RequestError("this network gives embeddings and has no classes, whose scores evaluation is about")
    if not plan.methods and not plan.baselines:
        raise RequestError("no methods were given; name some, such as saliency and grad_cam", field="methods")
    if not plan.metrics:
        raise RequestError(f"no metrics were given; there are: {', '.join(GROUPS)}", field="metrics")
    if plan.seed < 0:
        raise RequestError(f"seed={plan.seed}; use 0 or more", field="seed")
    if costly < 1:
        raise RequestError(f"costly_pictures={costly}; use 1 or more", field="costly_pictures")
    if target not in ("predicted", "true"):
        raise RequestError(f"no target {target!r}; there are: predicted, true", field="target")
    if boxes is None and "localisation" in plan.metrics:
        raise RequestError("localisation compares maps with marked objects; give boxes too", field="boxes")
    if boxes is not None and "localisation" not in plan.metrics:
        raise RequestError("boxes are for localisation; add it to the metrics, or leave them out", field="metrics")
    if target == "true" and labels is None:
        raise RequestError("target='true' explains the true class, which only labels can tell; give labels too")


def _metrics(
    model: Classifier | GraphModel, metrics: Iterable[str] | None, boxes: object
) -> tuple[tuple[str, ...], tuple[Stage, ...]]:
    """The groups of metrics, and the stages that sanity checks need; by default those that the model allows."""
    if metrics is not None:
        groups = require_groups(tuple(metrics))
        return groups, _stages(model) if "randomisation" in groups else ()
    groups = (*DEFAULT_METRICS, *(["localisation"] if boxes is not None else []))
    try:
        return groups, _stages(model)
    except UnsupportedModelError:
        return tuple(name for name in groups if name != "randomisation"), ()


def _stages(model: Classifier | GraphModel) -> tuple[Stage, ...]:
    if isinstance(model, GraphModel):
        raise UnsupportedModelError(
            "randomisation needs the network itself, and this model consists of graphs; leave it out of the metrics",
            field="metrics",
        )
    return stages(model, _STAGES)


def _objects(boxes: Path | str | Objects | None, files: Mapping[str, Path]) -> Objects:
    """The marked objects by image id."""
    if boxes is None:
        return {}
    return objects_by_id(boxes if isinstance(boxes, Mapping) else read_boxes(boxes), files)


def _pictures(
    files: Mapping[str, Path], classes: Mapping[str, int], objects: Objects, target: Target, costly: int
) -> list[Picture]:
    ids = list(files)
    some = {ids[n] for n in np.linspace(0, len(ids) - 1, min(costly, len(ids))).round().astype(int)}
    return [
        Picture(
            id,
            files[id],
            classes.get(id),
            classes[id] if target == "true" else None,
            costly=id in some,
            objects=objects.get(id, ()),
        )
        for id in ids
    ]


def _settings(
    model: Classifier | GraphModel,
    plan: EvaluationPlan,
    files: Mapping[str, Path],
    objects: Objects,
    target: Target,
    costly: int,
) -> dict[str, Any]:
    """All that decides the records, as JSON values."""
    digest = hashlib.sha256()
    for id, path in files.items():
        size = path.stat().st_size if path.exists() else -1
        digest.update(f"{id}\0{size}\0".encode())
    by_graph = isinstance(model, GraphModel) or model.graphs is not None
    return {
        "version": _VERSION,
        "model": model.spec.name,
        "weights_sha256": model.spec.weights_sha256,
        "runtime": "onnxruntime" if by_graph else "torch",
        "device": str(model.device),
        "precision": model.precision,
        "methods": {name: dict(options) for name, options in plan.methods.items()},
        "baselines": list(plan.baselines),
        "metrics": list(plan.metrics),
        "target": target,
        "steps": plan.protocol.steps,
        "insertion_substrate": plan.protocol.insertion_substrate,
        "deletion_substrate": plan.protocol.deletion_substrate,
        "seed": plan.seed,
        **({"stages": [stage.name for stage in plan.stages]} if plan.stages else {}),
        **({"road_fractions": list(FRACTIONS)} if "road" in plan.metrics else {}),
        "costly_pictures": min(costly, len(files)),
        "pictures": len(files),
        "list_sha256": digest.hexdigest(),
        **({"boxes_sha256": hashlib.sha256(repr(sorted(objects.items())).encode()).hexdigest()} if objects else {}),
    }
