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


def occlusion(result: dict[str, Any]) -> str:
    """benchmarks/occlusion.py: captum's best, and of ours the best that the library takes by itself."""
    heads = (
        "network",
        "captum's best",
        "ConvLens by torch",
        "ConvLens by a graph",
        "captum ÷ ConvLens",
        "maps apart by",
    )
    rows = []
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        side = {row["side"]: row for row in result["rows"] if row["model"] == model}
        best = side[next(iter(side.values()))["captum's best"]]
        graph = min((row for name, row in side.items() if name.startswith("onnx")), key=lambda row: row["seconds"])
        ratio, apart = f"{graph[RATIO]:.2f}", f"{graph['map off by']:.0e}"
        seconds = [f"{row['seconds']:.2f} s" for row in (best, side["torch"], graph)]
        rows.append((_short(model), *seconds, ratio, apart))
    return _table(heads, rows) + _machine(result)


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


def _amount(value: float, row: dict[str, Any]) -> str:
    return f"{value:.1f} answers/s" if "answers" in row["unit"] else f"{value * 1e3:.0f} ms"


def _result(row: dict[str, Any]) -> str:
    return (
        f"{row['result']:.1f} {row['unit']}" if row["unit"].startswith("ms") else f"{row['result']:.2f} {row['unit']}"
    )


RATIO, SHARE, TORCHS = "captum's best / this", "reading's share", "share of torch's"
MAKERS = "maker's probability"
# Name of the mark -> (result file, table).
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "relu_rules": ("relu_rules", relu_rules),
    "occlusion": ("occlusion-cpu", occlusion),
    "incremental": ("incremental-cpu", incremental),
    "explanation_graphs": ("explanation_graphs-cpu", explanation_graphs),
    "features": ("features-cpu", features),
    "workers": ("workers", workers),
    "serving": ("serving-cpu", serving),
    "gallery": ("gallery-cpu", gallery),
    "synthesis": ("synthesis-cpu", synthesis),
    "ascent_transfer": ("ascent_transfer-cpu", ascent_transfer),
}
# The README, and the how-tos that hold tables of their own.
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("speed", "galleries", "synthesis")))


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
        result = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}{mark}{table(result)}\n{end}{after}"
    return text


def main() -> None:
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
