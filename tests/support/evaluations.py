"""A finished evaluation made up by hand: methods, baselines, one that failed, curves and pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

STAGES = ("classifier", "conv_head", "blocks.6", "blocks.4", "blocks.2", "conv_stem")
FRACTIONS = [n / 22 for n in range(23)]
# method -> (insertion, deletion, seconds a picture, rank correlation by stage)
MEANS = {
    "integrated_gradients": (0.62, 0.16, 0.62, (0.46, 0.45, 0.40, 0.33, 0.2, 0.15)),
    "smooth_grad": (0.58, 0.17, 0.61, (0.5, 0.44, 0.38, 0.3, 0.2, 0.1)),
    "guided_backprop": (0.57, 0.18, 0.031, (1.0, 0.99, 0.98, 0.72, 0.5, 0.23)),
    "grad_cam": (0.60, 0.21, 0.028, (-0.15, 0.02, 0.15, 0.14, 0.16, 0.18)),
    "occlusion": (0.59, 0.21, 1.24, (0.3, 0.28, 0.2, 0.15, 0.1, 0.08)),
    "saliency": (0.48, 0.22, 0.03, (0.45, 0.4, 0.35, 0.25, 0.1, 0.0)),
    "centre": (0.50, 0.23, 0.0, (1.0,) * 6),
    "edges": (0.42, 0.21, 0.0, (1.0,) * 6),
    "random blobs": (0.44, 0.24, 0.0, (1.0,) * 6),
    "random pixels": (0.35, 0.18, 0.0, (1.0,) * 6),
}
BASELINES = ["centre", "edges", "random blobs", "random pixels"]
FAILED = "score_cam"
PICTURES = ("n0144.jpg", "n0271.jpg", "n0388.jpg", "n0412.jpg", "n0533.jpg", "n0699.jpg")


def interval(mean: float, half_width: float | None, n: int) -> dict[str, Any]:
    low, high = (None, None) if half_width is None else (mean - half_width, mean + half_width)
    return {"mean": mean, "low": low, "high": high, "n": n}


def difference(value: float, half_width: float | None, n: int) -> dict[str, Any]:
    ends = interval(value, half_width, n)
    return {"difference": value, "low": ends["low"], "high": ends["high"], "n": n}


def curve(start: float, end: float, bend: float, half_width: float | None) -> dict[str, Any]:
    span = end - start
    mean = [start + span * (1 - math.exp(-bend * x)) / (1 - math.exp(-bend)) for x in FRACTIONS]
    low = [None if half_width is None else max(value - half_width, 0.0) for value in mean]
    high = [None if half_width is None else value + half_width for value in mean]
    return {"mean": mean, "low": low, "high": high}


def method_summary(name: str, *, pictures: int = 200, intervals: bool = True) -> dict[str, Any]:
    insertion, deletion, seconds, correlations = MEANS[name]
    wide = 0.03 if intervals else None
    best = MEANS["integrated_gradients"]
    to_best = insertion - deletion - (best[0] - best[1])
    to_centre = insertion - deletion - (MEANS["centre"][0] - MEANS["centre"][1])
    correlation = {"mean": list(correlations), "low": list(correlations), "high": list(correlations)}
    similarity = {part: [0.5 + value / 2 for value in correlations] for part in ("mean", "low", "high")}
    randomisation = {"spearman": correlation, "ssim": similarity}
    return {
        "metrics": {
            "faithfulness": interval(insertion - deletion, wide, pictures),
            "insertion": interval(insertion, wide, pictures),
            "insertion_logit": interval(10 * insertion, 0.4 if intervals else None, pictures),
            "deletion": interval(deletion, 0.004 if intervals else None, pictures),
            "road_morf": interval(deletion + 0.1, wide, 20),
            "sparseness": interval(0.61, wide, pictures),
            "randomised_top": interval(correlations[0], wide, 20),
        },
        "seconds": seconds,
        "curves": {
            "insertion": {
                "fraction": FRACTIONS,
                "probability": curve(0.01, 0.72, 8 * insertion, wide),
                "logit": curve(1.0, 9.5, 8 * insertion, 0.5 if intervals else None),
            },
            "deletion": {
                "fraction": FRACTIONS,
                "probability": curve(0.72, 0.01, 2 / deletion, wide),
                "logit": curve(9.5, 1.0, 2 / deletion, 0.5 if intervals else None),
            },
            "road": {
                "fraction": [0.1, 0.3, 0.5, 0.7, 0.9],
                "morf": {part: [0.5, 0.3, 0.2, 0.1, 0.05] for part in ("mean", "low", "high")},
                "lerf": {part: [0.7, 0.65, 0.6, 0.5, 0.3] for part in ("mean", "low", "high")},
            },
        },
        "randomisation": {"cascading": randomisation, "independent": randomisation},
        "best": list(PICTURES[:3]),
        "worst": list(PICTURES[:-4:-1]),
        "failed": {"count": 0, "reason": ""},
        "against_best": difference(to_best, 0.05 if intervals else None, pictures) if to_best else None,
        "against_baseline": {
            "baseline": "centre",
            **difference(to_centre, 0.05 if intervals else None, pictures),
        },
    }


def failed_summary(reason: str) -> dict[str, Any]:
    return {
        "metrics": {},
        "seconds": None,
        "curves": {},
        "randomisation": {},
        "best": [],
        "worst": [],
        "failed": {"count": 200, "reason": reason},
        "against_best": None,
        "against_baseline": None,
    }


def summary(*, pictures: int = 200, intervals: bool = True) -> dict[str, Any]:
    methods = {name: method_summary(name, pictures=pictures, intervals=intervals) for name in MEANS}
    ranking = sorted(MEANS, key=lambda name: MEANS[name][1] - MEANS[name][0])
    return {
        "main_metric": "faithfulness",
        "ranking": ranking,
        "best": "integrated_gradients",
        "baselines": BASELINES,
        "methods": methods | {FAILED: failed_summary("score_cam needs a layer with a map, and head has none")},
        "pictures": pictures,
        "failures": [{"id": "broken.jpg", "reason": "the JPEG ends in the middle"}],
    }


def settings(weights_sha256: str = "0123456789abcdef" * 4) -> dict[str, Any]:
    return {
        "version": 1,
        "model": "packaged:efficientnet_lite0",
        "weights_sha256": weights_sha256,
        "runtime": "onnxruntime",
        "methods": {name: {} for name in (*MEANS, FAILED) if name not in BASELINES} | {"occlusion": {"window": 48}},
        "baselines": BASELINES,
        "metrics": ["insertion", "deletion", "road", "sparseness", "randomisation"],
        "steps": 22,
        "insertion_substrate": "blur",
        "deletion_substrate": "mean",
        "seed": 0,
        "costly_pictures": 20,
        "stages": list(STAGES),
        "road_fractions": [0.1, 0.3, 0.5, 0.7, 0.9],
        "pictures": 200,
        "list_sha256": "fedcba9876543210" * 4,
    }


def verdict(recommended: tuple[str, ...] = ("guided_backprop", "grad_cam")) -> dict[str, Any]:
    return {
        "headline": "On your 200 pictures integrated gradients finds best what the probability rests on (.46 ± .03); "
        "guided backprop comes near it at a twentieth of its cost.",
        "recommended": list(recommended),
        "sentences": {
            name: f"On your 200 pictures {name.replace('_', ' ')} finds what the score rests on better than a blob in "
            "the centre (+.12 ± .05)."
            for name in MEANS
            if name not in BASELINES
        },
        "notes": ["Costly metrics were measured on 20 of the 200 pictures."],
    }


def records() -> list[dict[str, Any]]:
    found = [
        {
            "id": name,
            "target": 282,
            "label": "tiger cat",
            "probability": 0.395,
            "logit": 9.25,
            "true_label": "tiger cat",
            "correct": True,
            "methods": {
                method: {
                    "seconds": MEANS[method][2],
                    "values": {"faithfulness": 0.7 - 0.1 * n, "deletion": -0.25},
                }
                for method in MEANS
            }
            | {FAILED: {"error": "score_cam needs a layer with a map, and head has none"}},
        }
        for n, name in enumerate(PICTURES)
    ]
    return [*found, {"id": "broken.jpg", "error": "the JPEG ends in the middle"}]


def write_evaluation(folder: Path, weights_sha256: str, **changes: Any) -> Path:
    """``evaluation.json`` as `convlens evaluate` leaves it; ``changes`` take the place of its parts."""
    folder.mkdir(parents=True, exist_ok=True)
    found = summary()
    parts = {"settings": settings(weights_sha256), "failures": found["failures"], "summary": found}
    parts |= {"verdict": verdict()} | changes
    (folder / "evaluation.json").write_text(json.dumps(parts), encoding="utf-8")
    return folder
