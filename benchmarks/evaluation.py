"""Which explanation to trust, measured; and what the measuring costs, beside the same protocol written plainly.

    python benchmarks/evaluation.py table IMAGES --model packaged:efficientnet_lite0 --work FOLDER
    python benchmarks/evaluation.py speed IMAGES

``table`` evaluates every method and baseline on ``--pictures`` images, evenly spread over the folder's, and writes
results/evaluation-NAME.json; killed, it goes on from the work folder. ``speed`` takes the time of twelve methods with
insertion and deletion curves (44 passes each) in plain scripts that take turns, a few images each:
``convlens.evaluate`` with an accelerated classifier, captum's methods by their defaults with a curve's images in one
batch, and the same by eights, the best size of batch here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from other_process import OtherProcess

TWELVE = (
    "saliency", "guided_backprop", "deconvnet", "input_x_gradient", "integrated_gradients", "smoothgrad",
    "gradient_shap", "deep_lift", "grad_cam", "hires_cam", "guided_grad_cam", "occlusion",
)  # fmt: skip
# The paper's 1,000 masks, and all of 1,280 maps, would take longer than all other methods together.
FEWER: dict[str, dict[str, Any]] = {"rise": {"masks": 300}, "score_cam": {"top": 64}}
STEPS = 22
SIDES = {"convlens": 0, "captum and torch": 0, "captum and torch, by eights": 8}  # images at a time, 0 for defaults
PICTURES = 200


def spread(folder: Path, count: int) -> dict[str, Path]:
    """So many of the folder's images by name, evenly spread."""
    import numpy as np

    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    return {files[n].name: files[n] for n in chosen}


# --- the table --------------------------------------------------------------------------------------------------------


def table(given: argparse.Namespace) -> None:
    from table import RESULTS, show, write

    import convlens

    classifier = convlens.accelerate(convlens.load(given.model, device="cpu"))
    chosen = (
        given.methods.split(",") if given.methods else [name for name in convlens.methods() if name != "neighbours"]
    )
    methods = {name: FEWER.get(name, {}) for name in chosen}
    evaluation = convlens.evaluate(
        classifier,
        spread(given.images, given.pictures),
        methods=methods,
        metrics=given.metrics.split(","),
        labels=given.labels,
        costly_pictures=given.costly,
        out=given.work,
        overwrite=given.overwrite,
        on_picture=lambda done, total, stage: print(f"{done} of {total}", flush=True) if not stage else None,
    )
    # Again, alone: the run may have shared the machine.
    timed = spread(given.images, given.timed)
    again = convlens.evaluate(classifier, timed, methods=methods, metrics=["sparseness"], baselines=[], workers=1)
    seconds = {name: method["seconds"] for name, method in again.summary["methods"].items()}
    rows = [
        {"method": name, **_means(method["metrics"]), "seconds": seconds.get(name, 0.0), "metrics": method["metrics"]}
        for name, method in evaluation.summary["methods"].items()
    ]
    rows.sort(key=lambda row: -row.get("faithfulness", 0.0))
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "metrics"]
    show([{key: row.get(key, "") for key in columns} for row in rows])  # costly methods get no sanity checks
    settings = {key: value for key, value in evaluation.settings.items() if key != "list_sha256"}
    settings["model"] = classifier.spec.name.partition("?")[0]
    path = RESULTS / f"evaluation-{given.name or classifier.spec.name.partition(':')[2].partition('?')[0]}.json"
    write(path, device="cpu", rows=rows, settings=settings, verdict=evaluation.verdict, summary=_short(evaluation))


def _means(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: estimate["mean"] for name, estimate in metrics.items()}


def _short(evaluation: Any) -> dict[str, Any]:
    """What docs/evaluation.md quotes beside the rows: comparisons, mean curves, randomisation."""
    kept = ("against_best", "against_baseline", "randomisation", "failed")
    methods = evaluation.summary["methods"]
    return {
        **{key: evaluation.summary[key] for key in ("main_metric", "ranking", "baselines", "pictures")},
        "methods": {name: {key: method[key] for key in kept} for name, method in methods.items()},
    }


# --- the speed --------------------------------------------------------------------------------------------------------


class Side:
    """A plain script in a process of its own: no environment variable, torch's own allocator."""

    def __init__(self, name: str, model: str) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
        self._process = OtherProcess(__file__, "side", name, model, env=kept)

    def seconds(self, pictures: Sequence[Path]) -> tuple[float, dict[str, dict[str, list[float]]]]:
        """Of one of the images, and the areas by image and method."""
        started = time.perf_counter()
        areas = json.loads(self._process.ask(json.dumps([str(path) for path in pictures])))
        return (time.perf_counter() - started) / len(pictures), areas

    def close(self) -> None:
        self._process.close()


def speed(given: argparse.Namespace) -> None:
    from table import RESULTS, ratios, show, write

    pictures = list(spread(given.images, (given.turns + 1) * given.pictures).values())
    sides = {name: Side(name, given.model) for name in SIDES}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    apart: list[float] = []
    for turn in range(given.turns + 1):
        some = pictures[turn * given.pictures :][: given.pictures if turn else 2]  # the first turn warms up
        areas = {}
        for name in list(sides) if turn % 2 else list(reversed(sides)):
            taken, areas[name] = sides[name].seconds(some)
            if turn:
                seconds[name].append(taken)
        apart += [
            abs(a - b)
            for picture in areas["convlens"]
            for method in ("integrated_gradients", "input_x_gradient")
            for a, b in zip(areas["convlens"][picture][method], areas["captum and torch"][picture][method], strict=True)
        ]
        print({name: round(times[-1], 2) for name, times in seconds.items() if times}, flush=True)
    for side in sides.values():
        side.close()
    rows = [
        {
            "side": name,
            "seconds an image": statistics.median(times),
            f"minutes for {PICTURES}": statistics.mean(times) * PICTURES / 60,
            "this / convlens": ratios(times, seconds["convlens"])[0],
        }
        for name, times in seconds.items()
    ]
    show(rows)
    print(f"areas apart by at most {max(apart):.1e}")
    write(
        RESULTS / "evaluation-speed-cpu.json",
        device="cpu",
        rows=rows,
        model=given.model.partition("?")[0],
        methods=TWELVE,
        steps=STEPS,
        pictures=given.turns * given.pictures,
        **{"areas apart": max(apart)},
    )


def side(name: str, model: str) -> None:
    """Answer each list of images with the areas of all methods' curves, [insertion, deletion] of the probability."""
    import convlens

    warnings.simplefilter("ignore")
    classifier = convlens.load(model, device="cpu")
    if name == "convlens":
        classifier = convlens.accelerate(classifier)
    evaluate = _by_convlens if name == "convlens" else partial(_by_hand, at_once=SIDES[name])
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(evaluate(classifier, [Path(path) for path in json.loads(line)])), flush=True)


Areas = dict[str, dict[str, list[float]]]


def _by_convlens(classifier: Any, pictures: Sequence[Path]) -> Areas:
    import convlens

    evaluation = convlens.evaluate(
        classifier, pictures, methods=TWELVE, metrics=("insertion", "deletion"), baselines=()
    )
    return {
        record["id"]: {
            name: [method["values"]["insertion"], method["values"]["deletion"]]
            for name, method in record["methods"].items()
            if "values" in method
        }
        for record in evaluation.records
    }


def _by_hand(classifier: Any, pictures: Sequence[Path], at_once: int) -> Areas:
    return {picture.name: _areas_by_hand(classifier, picture, at_once) for picture in pictures}


def _areas_by_hand(classifier: Any, picture: Path, at_once: int) -> dict[str, list[float]]:
    """captum's methods with the samples and windows that ConvLens has by default, and one loop over them."""
    import torch
    from torchvision.transforms.functional import gaussian_blur

    import convlens

    module, spec = classifier.module, classifier.spec
    x = torch.as_tensor(convlens.image.prepare(convlens.image.read(picture), spec).x_CHW)[None]
    with torch.no_grad():
        target = int(module(x).argmax())
    substrates = {"insertion": gaussian_blur(x, [11, 11], [5.0, 5.0]), "deletion": torch.zeros_like(x)}
    areas: dict[str, list[float]] = {}
    for name in TWELVE:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = _captum_map(name, module, spec, x, target, at_once)
        if values is None:
            continue
        signed = name not in ("saliency", "smoothgrad", "guided_backprop", "deconvnet", "guided_grad_cam")
        relevance = (values.sum(1) if signed else values.abs().amax(1))[0].flatten()
        order = relevance.argsort(descending=True)
        areas[name] = [_area(kind, module, x, target, order, base, at_once) for kind, base in substrates.items()]
    return areas


def _area(kind: str, module: Any, x: Any, target: int, order: Any, base: Any, at_once: int) -> float:
    import torch

    start, goal = (base, x) if kind == "insertion" else (x, base)
    total, images = order.numel(), []
    for step in range(STEPS + 1):
        image = start.clone().flatten(2)
        best = order[: round(step * total / STEPS)]
        image[:, :, best] = goal.flatten(2)[:, :, best]
        images.append(image.view_as(x))
    scores = []
    with torch.no_grad():
        for batch in torch.split(torch.cat(images), at_once or len(images)):
            scores.append(module(batch).softmax(1)[:, target])
    return float(torch.trapezoid(torch.cat(scores), dx=1 / STEPS))


def _captum_map(name: str, module: Any, spec: Any, x: Any, target: int, at_once: int) -> Any:
    """(1, C, H, W); None where captum has no such method for this network."""
    import torch
    from captum import attr

    size, layer = tuple(x.shape[2:]), module.get_submodule(spec.gradcam_layer)
    image = x.clone().requires_grad_()
    simple = {
        "saliency": attr.Saliency, "guided_backprop": attr.GuidedBackprop, "deconvnet": attr.Deconvolution,
        "input_x_gradient": attr.InputXGradient, "deep_lift": attr.DeepLift,
    }  # fmt: skip
    try:
        if name in simple:
            return simple[name](module).attribute(image, target=target).detach()
        if name == "integrated_gradients":
            return attr.IntegratedGradients(module).attribute(
                image, target=target, n_steps=_default(name, "steps"), internal_batch_size=at_once or None
            ).detach()  # fmt: skip
        if name == "smoothgrad":
            return attr.NoiseTunnel(attr.Saliency(module)).attribute(
                image, nt_type="smoothgrad", nt_samples=_default(name, "samples"),
                nt_samples_batch_size=at_once or None, stdevs=0.15 * float(x.max() - x.min()), target=target,
            ).detach()  # fmt: skip
        if name == "gradient_shap":
            colours = torch.randn(1, x.shape[1], 1, 1).expand(8, -1, *size)
            return attr.GradientShap(module).attribute(
                image, baselines=colours, n_samples=_default(name, "samples"), target=target
            ).detach()  # fmt: skip
        if name == "guided_grad_cam":
            return attr.GuidedGradCam(module, layer).attribute(image, target=target).detach()
        if name == "occlusion":
            with torch.no_grad():
                return attr.Occlusion(module).attribute(
                    x, (x.shape[1], 32, 32), strides=(x.shape[1], 16, 16), target=target,
                    perturbations_per_eval=at_once or 1,
                )  # fmt: skip
        if name == "grad_cam":
            cam = attr.LayerGradCam(module, layer).attribute(x, target=target).detach()
        else:
            product = attr.LayerGradientXActivation(module, layer).attribute(x, target=target)
            cam = product.detach().sum(1, keepdim=True)
        return attr.LayerAttribution.interpolate(cam, size, interpolate_mode="bilinear")
    except (AssertionError, RuntimeError, ValueError) as error:
        print(f"captum's {name}: {error}", file=sys.stderr)
        return None


def _default(method: str, option: str) -> Any:
    from convlens.explain import get

    return get(method).options[option][1]


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["side"]:
        side(*arguments[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("table")
    first.set_defaults(call=table)
    first.add_argument("images", type=Path)
    first.add_argument("--model", default="packaged:efficientnet_lite0")
    first.add_argument("--name", default="")
    first.add_argument("--pictures", type=int, default=PICTURES)
    first.add_argument("--methods", default="")
    first.add_argument("--metrics", default="insertion,deletion,sparseness")
    first.add_argument("--timed", type=int, default=5, help="images on which the seconds are taken at the end")
    first.add_argument("--costly", type=int, default=20)
    first.add_argument("--labels", type=Path)
    first.add_argument("--work", type=Path, required=True)
    first.add_argument("--overwrite", action="store_true")
    second = commands.add_parser("speed")
    second.set_defaults(call=speed)
    second.add_argument("images", type=Path)
    second.add_argument("--model", default="packaged:efficientnet_lite0")
    second.add_argument("--pictures", type=int, default=6, help="images of a turn")
    second.add_argument("--turns", type=int, default=3)
    given = parser.parse_args(arguments)
    given.call(given)


if __name__ == "__main__":
    main(sys.argv[1:])
