"""Puts the figures of benchmarks/results into the README and docs/speed.md, between their ``<!-- NAME -->`` marks.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def relu_rules(result: dict[str, Any]) -> str:
    """benchmarks/relu_rules.py"""
    heads = (
        "network",
        "batch",
        "captum, three calls",
        "ConvLens, one forward",
        "captum ÷ ConvLens",
        "… given channels_last",
    )
    rows = [
        (
            row["model"],
            str(row["batch"]),
            f"{row['captum ms']:.0f} ms",
            f"{row['convlens ms']:.0f} ms",
            f"{row['captum / convlens']:.2f}",
            f"{row['captum, channels last / convlens']:.2f}",
        )
        for row in result["rows"]
    ]
    return _table(heads, rows) + _machine(result)


_DOORS = {
    "plain script": "Python, as loaded",
    "plain script, accelerated": "Python, after `convlens.accelerate`",
    "plain script, accelerated, half": "… and with `precision=half` (bfloat16)",
    "onnx": "command line and server, with graphs",
    "openvino, half, stated": "with graphs, `precision=half` (bfloat16)",
}


def occlusion(result: dict[str, Any]) -> str:
    """benchmarks/occlusion.py: a row for each door, captum's best of the same run over it."""
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    heads = ("an occlusion sweep, captum ÷ ConvLens", *map(_short, models))
    by_model = [_sides(result["rows"], model) for model in models]
    bests = [each[next(iter(each.values()))["captum's best"]] for each in by_model]
    rows = [("captum's best, plain script", *(f"{best['seconds']:.2f} s" for best in bests))]
    for side, door in _DOORS.items():
        if all(side in each for each in by_model):
            rows.append((door, *(f"{each[side][RATIO]:.2f} ({each[side]['seconds']:.2f} s)" for each in by_model)))
    rows.append(("maps apart by, in float32", *(f"{_apart(each):.0e}" for each in by_model)))
    return _table(heads, rows) + _machine(result)


def _sides(rows: Sequence[dict[str, Any]], model: str) -> dict[str, dict[str, Any]]:
    """The rows of a model by their side; the fastest graph in float32 by ONNX Runtime as ``onnx``."""
    sides = {row["side"]: row for row in rows if row["model"] == model}
    graphs = [row for name, row in sides.items() if name.startswith("onnx") and "half" not in name]
    return sides | {"onnx": min(graphs, key=lambda row: row["seconds"])}


def _apart(sides: dict[str, dict[str, Any]]) -> float:
    return max(sides[side]["map off by"] for side in _DOORS if side in sides and "half" not in side)


def python_api(result: dict[str, Any]) -> str:
    """benchmarks/python_api.py: captum's best over ConvLens, both in a plain script."""
    gradients = [row for row in result["rows"] if row["work"] != "occlusion"]
    models = list(dict.fromkeys(row["model"] for row in gradients))
    rows = []
    for work in dict.fromkeys(row["work"] for row in gradients):
        of_model = {row["model"]: row for row in gradients if row["work"] == work}
        ratios = [f"{of_model[model][PLAIN]:.2f} ({of_model[model]['seconds']:.2f} s)" for model in models]
        rows.append((_WORKS[work].format(**gradients[0]), *ratios))
    return _table(("plain script, captum ÷ ConvLens", *models), rows) + _machine(result)


_WORKS = {
    "three rules": "saliency, guided backprop and deconvnet of {images} pictures",
    "grad_cam": "Grad-CAM of {images}",
    "smoothgrad": "SmoothGrad of {images}, 4 samples",
    "integrated_gradients": "integrated gradients of {images}, 4 steps",
}


def incremental(result: dict[str, Any]) -> str:
    """benchmarks/incremental.py"""
    heads = ("network", "strategy written", "full sweep", "incremental", "full ÷ incremental")
    rows = [
        (
            _short(row["model"]),
            row["strategy"],
            f"{row[row['best full'] + ' s']:.2f} s",
            f"{row['incremental s']:.2f} s",
            f"{row['full / incremental']:.2f}",
        )
        for row in result["rows"]
    ]
    return _table(heads, rows) + _machine(result)


def explanation_graphs(result: dict[str, Any]) -> str:
    """benchmarks/explanation_graphs.py"""
    heads = ("network", "method", "batch", "eager", "graph", "eager ÷ graph")
    rows = [
        (
            _short(row["model"]),
            row["method"],
            str(row["batch"]),
            f"{row['eager ms']:.0f} ms",
            f"{row['graph ms']:.0f} ms",
            f"{row['eager / graph']:.2f}",
        )
        for row in result["rows"]
    ]
    return _table(heads, rows) + _machine(result)


def features(result: dict[str, Any]) -> str:
    """benchmarks/features.py"""
    heads = ("", "pictures/s", "÷ DataLoader", "of it reading")
    rows = [
        (
            row["side"],
            f"{row['pictures/s']:.0f}",
            f"{row['against the DataLoader']:.2f}",
            f"{row[SHARE]:.0%}" if row[SHARE] else "",
        )
        for row in result["rows"]
    ]
    return _table(heads, rows) + _machine(result)


def workers(result: dict[str, Any]) -> str:
    """benchmarks/workers.py"""
    heads = ("archive", "ready after", "memory above the empty worker", "÷ torch")
    rows = [
        (
            row["worker"],
            f"{row['ready s']:.1f} s",
            f"{row['above empty MB']:.0f} MB",
            f"{row[TORCHS]:.2f}" if row["above empty MB"] else "",
        )
        for row in result["rows"]
    ]
    empty = next(row["memory after work MB"] for row in result["rows"] if row["worker"] == "empty")
    return _table(heads, rows) + _machine(result) + f" The empty worker itself: {empty:.0f} MB."


def serving(result: dict[str, Any]) -> str:
    """benchmarks/serving.py"""
    heads = ("", "ours", "beside", "")
    rows = [
        (row["what"], _amount(row["ours"], row), _amount(row["beside"], row), _result(row)) for row in result["rows"]
    ]
    return _table(heads, rows) + _machine(result)


def scale(result: dict[str, Any]) -> str:
    """benchmarks/scale.py"""
    rows = [(row["what"], f"{row['result']:.3g} {row['unit']}") for row in result["rows"]]
    return _table(("", "measured"), rows) + _machine(result)


def mixed_load(result: dict[str, Any]) -> str:
    """benchmarks/mixed_load.py"""
    heads = ("", "requests", "right", "seconds", "memory before", "memory after")
    rows = [
        (
            row["server"],
            str(row["requests"]),
            str(row["right"]),
            f"{row['seconds']:.0f}",
            f"{row['MB before']:.0f} MB in {row['processes']} process{'es' if row['processes'] > 1 else ''}",
            f"{row['after / before'] - 1:+.1%}",
        )
        for row in result["rows"]
    ]
    return _table(heads, rows)


def slow_neighbours(result: dict[str, Any]) -> str:
    """benchmarks/slow_neighbours.py"""
    heads = ("", "predictions", "median", "99th percentile")
    first = result["rows"][0]
    rows = [("alone", str(first["predictions alone"]), f"{1e3 * first['p50']:.0f} ms", f"{1e3 * first['p99']:.0f} ms")]
    for row in result["rows"]:
        rows.append(
            (
                f"beside a slow file every {row['seconds apart']:g} s",
                str(row["predictions"]),
                f"{1e3 * row['p50 beside']:.0f} ms",
                f"{1e3 * row['p99 beside']:.0f} ms, {row['p99 beside / p99']:.2g} × as long as alone just before",
            )
        )
    return _table(heads, rows)


def gallery(result: dict[str, Any]) -> str:
    """benchmarks/gallery.py"""
    heads = ("", "a query", "numpy ÷ this", "recall@10", "index", "built in")
    rows = [
        (
            "numpy, all vectors in memory" if row["side"] == "numpy" else row["side"],
            f"{row['milliseconds a query']:.1f} ms",
            f"{row['numpy / this']:.1f}",
            f"{row['recall@10']:.3f}",
            f"{row['index MB']:.0f} MB" if row["index MB"] else "",
            f"{row['built in seconds']:.0f} s" if row["built in seconds"] else "",
        )
        for row in result["rows"]
    ]
    return f"{result['vectors']} (`benchmarks/gallery.py`):\n\n" + _table(heads, rows) + _machine(result)


def synthesis(result: dict[str, Any]) -> str:
    """benchmarks/synthesis.py"""
    heads = ("", "bare", "a step", "step ÷ bare")
    rows = [
        (row["work"], f"{row['bare ms']:.1f} ms", f"{row['step ms']:.1f} ms", f"{row['step / bare']:.2f}")
        for row in result["rows"]
    ]
    quilt = f" Quilting 512² from 192²: {result['quilting 512 from 192, s']:.2f} s."
    return _table(heads, rows) + _machine(result) + quilt


def ascent_transfer(result: dict[str, Any]) -> str:
    """benchmarks/ascent_transfer.py"""
    heads = (
        "preset",
        "maker's probability, the least",
        "first by the judge",
        "in its first 5",
        "in its first 20",
        "of",
    )
    rows = []
    for preset in dict.fromkeys(row["preset"] for row in result["rows"]):
        some = [row for row in result["rows"] if row["preset"] == preset]
        ranks = [row["judge's rank"] for row in some]
        counts = [str(sum(rank < most for rank in ranks)) for most in (1, 5, 20)]
        rows.append((preset, f"{min(row[MAKERS] for row in some):.3f}", *counts, str(len(some))))
    return _table(heads, rows)


def evaluation(*results: dict[str, Any]) -> str:
    """benchmarks/evaluation.py table: a row for each method and baseline, the best of the first model first."""
    names = [_short(result["settings"]["model"]) for result in results]
    heads = ["", *(f"{name}: insertion − deletion" for name in names)]
    heads += [f"{name}: insertion, deletion" for name in names] + ["seconds an image"]
    by_model = [{row["method"]: row for row in result["rows"]} for result in results]
    rows = []
    for method, first in by_model[0].items():
        of_each = [each.get(method) for each in by_model]
        name = f"*{method}*" if method in results[0]["settings"]["baselines"] else method.replace("_", " ")
        both = [f"{_estimate(row, 'insertion')}, {_estimate(row, 'deletion')}" if row else "" for row in of_each]
        seconds = f"{first['seconds']:.2f}" if first["seconds"] else ""
        rows.append([name, *(_estimate(row, "faithfulness") if row else "" for row in of_each), *both, seconds])
    pictures = results[0]["summary"]["pictures"]
    said = f"\n\n{pictures} images; ± is half of a 95 % bootstrap interval; baselines in italics. Seconds by {names[0]}"
    return _table(heads, rows) + said + _machine(results[0]).removeprefix("\n\n").join((": ", ""))


def _estimate(row: dict[str, Any], name: str) -> str:
    estimate = row["metrics"].get(name)
    if not estimate:
        return ""
    return f"{estimate['mean']:.3f} ± {(estimate['high'] - estimate['low']) / 2:.3f}"


def randomisation(result: dict[str, Any]) -> str:
    """benchmarks/evaluation.py table, with the costly metrics."""
    stages = result["settings"]["stages"]
    rows = []
    for name, method in result["summary"]["methods"].items():
        if "cascading" in method["randomisation"]:
            means = method["randomisation"]["cascading"]["spearman"]["mean"]
            rows.append((name.replace("_", " "), *("" if mean is None else f"{mean:.2f}" for mean in means)))
    rows.sort(key=lambda row: -float(row[1] or 0))
    heads = ("random down to", *(f"`{stage}`" for stage in stages))
    return _table(heads, rows) + f"\n\n{result['summary']['pictures']} images, {_short(result['settings']['model'])}."


def evaluation_speed(result: dict[str, Any]) -> str:
    """benchmarks/evaluation.py speed"""
    minutes = next(key for key in result["rows"][0] if key.startswith("minutes"))
    rows = [
        (
            row["side"],
            f"{row['seconds an image']:.1f} s",
            f"{row[minutes]:.0f} min",
            f"{row['this / convlens']:.2f}" if row["side"] != "convlens" else "",
        )
        for row in result["rows"]
    ]
    heads = ("12 methods, insertion and deletion", "an image", minutes.replace("minutes for", "for"), "÷ ConvLens")
    said = f"\n\n{result['pictures']} images, {_short(result['model'])}; "
    return _table(heads, rows) + said + _machine(result).removeprefix("\n\n")


def _amount(value: float, row: dict[str, Any]) -> str:
    return f"{value:.1f} answers/s" if "answers" in row["unit"] else f"{value * 1e3:.0f} ms"


def _result(row: dict[str, Any]) -> str:
    return (
        f"{row['result']:.1f} {row['unit']}" if row["unit"].startswith("ms") else f"{row['result']:.2f} {row['unit']}"
    )


RATIO, SHARE, TORCHS = "captum's best / this", "reading's share", "share of torch's"
MAKERS, PLAIN = "maker's probability", "captum / this"
# Name of the mark -> (result file, or several with commas, table).
TABLES: dict[str, tuple[str, Callable[..., str]]] = {
    "relu_rules": ("relu_rules", relu_rules),
    "occlusion": ("occlusion-cpu", occlusion),
    "python_api": ("python_api-cpu", python_api),
    "incremental": ("incremental-cpu", incremental),
    "explanation_graphs": ("explanation_graphs-cpu", explanation_graphs),
    "features": ("features-cpu", features),
    "workers": ("workers", workers),
    "serving": ("serving-cpu", serving),
    "scale": ("scale-cpu", scale),
    "mixed_load": ("mixed_load-cpu", mixed_load),
    "slow_neighbours": ("slow-neighbours-cpu", slow_neighbours),
    "gallery": ("gallery-cpu", gallery),
    "synthesis": ("synthesis-cpu", synthesis),
    "ascent_transfer": ("ascent_transfer-cpu", ascent_transfer),
    "evaluation": ("evaluation-efficientnet_lite0,evaluation-squeezenet1_0", evaluation),
    "randomisation": ("evaluation-efficientnet_lite0-costly", randomisation),
    "evaluation_speed": ("evaluation-speed-cpu", evaluation_speed),
}
# The README, and the how-tos that hold tables of their own.
DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("evaluation", "speed", "galleries", "synthesis", "scale", "serving")),
)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def _short(model: str) -> str:
    """torchvision:resnet18:untrained?size=224 -> resnet18"""
    return model.split(":")[1].partition("?")[0]


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    said = f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"
    return f"\n\n{said}; medians, sides taking turns."


def filled(text: str) -> str:
    """A document's text with every table that it has a mark for as its result file has it."""
    for name, (file, table) in TABLES.items():
        if f"<!-- {name} -->\n" not in text:
            continue
        results = [json.loads((RESULTS / f"{each}.json").read_text(encoding="utf-8")) for each in file.split(",")]
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}{mark}{table(*results)}\n{end}{after}"
    return text


def main() -> None:
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
