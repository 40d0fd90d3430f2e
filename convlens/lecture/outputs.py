"""What commands wrote, read back as figures: jobs, explanations, images and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convlens import explain, image
from convlens.engine.rendering import heatmap_scale, overlay_scale
from convlens.errors import UnsupportedModelError
from convlens.jobs.captions import fact_rows
from convlens.lecture.base import RESULTS, Drawn, Lecture
from convlens.protocol.reply_folder import read_reply
from convlens.report.html import percent
from convlens.synth.images import resized
from convlens.types import Attribution, Bytes8, Explanation, Reply
from convlens.visualization import colour_bar
from convlens.visualization.layout import add_margin, hstack, text_image, vstack

_LETTERS = 14
_TILE = 256  # pixels
_GAP = 12


def read_image(path: Path) -> Bytes8:
    """An image file as (H, W, 3)."""
    return np.asarray(image.read(path).convert("RGB"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by the names of its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def captioned(image_HWC: Bytes8, caption: str) -> Bytes8:
    """The image above its caption."""
    return vstack([image_HWC, text_image(caption, size=_LETTERS, width=image_HWC.shape[1])], gap=6)


def sheet(tiles: Sequence[Bytes8], *, columns: int) -> Bytes8:
    """Tiles in rows, with a margin."""
    rows = [hstack(tiles[first : first + columns], gap=_GAP) for first in range(0, len(tiles), columns)]
    return add_margin(vstack(rows, gap=_GAP), margin=_GAP)


# ---- jobs


def job_drawing(lecture: Lecture, name: str, stem: str) -> Callable[[], Drawn]:
    """The job's image or figure of that stem, with the facts of its manifest, and its page."""
    return lambda: _job(lecture, name, stem)


def _job(lecture: Lecture, name: str, stem: str) -> Drawn:
    folder = lecture.path(f"{RESULTS}/{name}")
    return Drawn(
        add_margin(read_image(folder / f"{stem}.png"), margin=_GAP),
        job_numbers(folder),
        fact_rows(read_json(folder / "manifest.json")["job"], job_numbers(folder)["facts"]),
        [job_page(name)],
    )


def job_numbers(folder: Path) -> dict[str, Any]:
    """What the job's manifest says that does not depend on how long it took."""
    manifest = read_json(folder / "manifest.json")
    return {name: manifest[name] for name in ("job", "steps", "objective", "facts")}


def job_page(name: str, title: str = "The job: objective, intermediate images, options") -> tuple[str, str]:
    """Title and address of a job's page."""
    return title, f"{RESULTS}/{name}/index.html"


# ---- explanations


def explanation_drawing(
    lecture: Lecture, name: str, methods: Mapping[str, str], *, overlays: bool = True, unit: str = ""
) -> Callable[[], Drawn]:
    """A row an image: what the network saw, then the maps of the methods (name -> what it is called), with colour bars.

    ``overlays`` adds each map over the image; ``unit`` is that of the maps. UnsupportedModelError, with the reason,
    where the network was explained by none of them.
    """
    return lambda: _explanations(lecture, name, methods, overlays=overlays, unit=unit)


def _explanations(lecture: Lecture, name: str, methods: Mapping[str, str], *, overlays: bool, unit: str) -> Drawn:
    folder = lecture.path(f"{RESULTS}/{name}")
    rows, numbers = [], []
    for entry in read_json(folder / "manifest.json")["pictures"]:
        reply = read_reply(folder / entry["folder"])
        by_method = {item.id: item for item in reply.explanations}
        if not by_method.keys() & methods.keys():
            raise UnsupportedModelError("; ".join(reply.warnings) or f"{lecture.model} has no {', '.join(methods)}")
        view = _tile(read_image(folder / entry["folder"] / "view.png"))
        tiles = [captioned(view, _predicted(reply))]
        for method, title in methods.items():
            if method in by_method:
                tiles += _maps(by_method[method], title, overlays=overlays, unit=unit)
        rows.append(hstack(tiles, gap=_GAP))
        numbers.append({"picture": entry["name"], **_explanation_numbers(reply, by_method)})
    return Drawn(
        add_margin(vstack(rows, gap=_GAP), margin=_GAP),
        {"pictures": numbers},
        pages=[("The report: every map, its options and warnings", f"{RESULTS}/{name}/report.html")],
    )


def _predicted(reply: Reply) -> str:
    if not reply.predictions:
        return "no classes"
    best = reply.predictions[0]
    return f"{best.label}, {percent(best.probability) if reply.has_probabilities else f'{best.probability:.2f}'}"


def _maps(item: Explanation, title: str, *, overlays: bool, unit: str) -> list[Bytes8]:
    """The map with its colour bar, and the map over the image."""
    assert isinstance(item.result, Attribution), "methods of a lecture are maps"
    method = explain.get(item.method)
    heat = _tile(np.asarray(image.decode(item.heatmap_png).convert("RGB")), smooth=False)
    caption = f"{title}: {item.target_label}"
    drawn = heatmap_scale(item.result, method)
    bar = colour_bar(drawn.limit, kind=drawn.colours, height=len(heat), unit=unit)
    tiles = [captioned(hstack([heat, bar], gap=6), caption)]
    if overlays:
        over = _tile(np.asarray(image.decode(item.overlay_png).convert("RGB")))
        drawn_over = overlay_scale(item.result, method)
        bar = colour_bar(drawn_over.limit, kind=drawn_over.colours, height=len(over), unit=unit)
        tiles.append(captioned(hstack([over, bar], gap=6), "over the image"))
    return tiles


def _tile(image_HWC: Bytes8, *, smooth: bool = True) -> Bytes8:
    """At a common height; maps by whole squares where they are small."""
    height, width = image_HWC.shape[:2]
    if not smooth and _TILE // height > 1:
        factor = _TILE // height
        image_HWC = image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)
        height, width = image_HWC.shape[:2]
    return resized(image_HWC, (_TILE, round(width * _TILE / height)))


def _explanation_numbers(reply: Reply, by_method: Mapping[str, Explanation]) -> dict[str, Any]:
    predictions = [
        {"label": each.label, "probability": each.probability, "logit": each.logit} for each in reply.predictions
    ]
    maps = {}
    for name, item in by_method.items():
        assert isinstance(item.result, Attribution), "methods of a lecture are maps"
        values = item.result.values_NCHW
        maps[name] = {
            "of": item.target_label,
            "score": float(item.result.score_N[0]),
            "smallest": float(values.min()),
            "largest": float(values.max()),
            "mean_of_absolute_values": float(np.abs(values).mean()),
        }
    return {"predictions": predictions, "maps": maps}
