"""What a job is called, and what its images show: captions from the facts that its run left.

Facts may come from a manifest of an older version, so none is taken for granted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from convlens.jobs.option_docs import as_words
from convlens.report.html import percent
from convlens.report.job_page import Prediction, ResultImage

_Facts = Mapping[str, Any]

_TITLES = {
    "ascent": "Activation maximisation",
    "dream": "DeepDream",
    "efros": "Texture by Efros and Leung",
    "fool": "Adversarial example",
    "invert": "Feature inversion",
    "quilt": "Texture by quilting",
    "texture": "Texture by Gram matrices",
}
_FIGURES = {
    "before-and-after": "Before and after",
    "figure": "Original, adversarial example, difference, amplified difference",
    "shallow-to-deep": "The image and its inversions, from shallow to deep layers",
    "source-and-texture": "Source and texture",
}
# What a fact is called, and its unit.
_FACTS = {
    "psnr_db": ("PSNR of the change", "dB"),
    "rms_levels": ("Root mean square of the change", "levels of 255"),
    "largest_change_levels": ("Largest change of a value", "levels of 255"),
    "values_changed": ("Values changed", "%"),
    "energy_before": ("Mean energy of the layers before", ""),
    "energy_after": ("Mean energy of the layers after", ""),
    "energy_ratio": ("Energy after ÷ before", ""),
    "octaves": ("Octaves, height × width", "pixels"),
    "gram_loss_of_noise": ("Gram loss of noise", ""),
    "gram_loss": ("Gram loss of the texture", ""),
    "fell_by": ("Gram loss of noise ÷ texture", ""),
    "without_predictions": ("No predictions", ""),
    "blocks": ("Blocks of the source", ""),
    "overlap": ("Overlap used", "pixels"),
    "max_error": ("Error allowed at the end", ""),
    "contrast_levels": ("Standard deviation of the picture", "levels of 255"),
}
_SHOWN_PREDICTIONS = 5


def kind_title(kind: str) -> str:
    """The name of the method; the kind itself where it is not known here."""
    return _TITLES.get(kind, kind)


def subject(job: Mapping[str, Any]) -> str:
    """What the job of that description is about: its classes, its channels or the name of its image."""
    if job.get("classes"):
        return ", ".join(map(str, job["classes"]))
    if job.get("layer"):
        channels = ", ".join(map(str, job.get("channels") or []))
        return f"{job['layer']}, channels {channels}" if channels else str(job["layer"])
    source = PurePath(str(job.get("picture") or job.get("source") or "")).name
    return f"{source} as {job['target']}" if job.get("target") is not None else source


def result_images(kind: str, stems: Sequence[str], facts: _Facts, folder: str = "") -> list[ResultImage]:
    """The images of a run with those file stems, in order, with captions; addresses begin with ``folder``."""
    captions = _CAPTIONS.get(kind, _of_any)(facts)
    padded = [*captions, *[("", "", [])] * max(0, len(stems) - len(captions))]
    return [
        ResultImage(address(folder, f"{stem}.png"), title or _spaced(stem), headline, predictions)
        for stem, (title, headline, predictions) in zip(stems, padded, strict=False)
    ]


def shown_figures(stems: Iterable[str]) -> list[str]:
    """Those that a page shows: all but a contact sheet, which repeats the images above it."""
    return [stem for stem in stems if stem != "sheet"]


def figure_title(stem: str) -> str:
    """What a figure with that file stem shows."""
    return _FIGURES.get(stem, _spaced(stem))


def address(folder: str, name: str) -> str:
    """A file's address from a page that is beside ``folder``, whatever letters its name has."""
    return quote(f"{folder}/{name}" if folder else name)


def fact_rows(job: Mapping[str, Any], facts: _Facts) -> list[tuple[str, str]]:
    """The facts that no caption and no option shows already, with names and units to read."""
    hidden = {"targets", "layers", "before", "after", "target"} if job["kind"] in _TITLES else set()
    return [
        (_FACTS.get(name, (_spaced(name), ""))[0], _fact_text(name, value))
        for name, value in facts.items()
        if name not in hidden and not _is_option(job, name, value)
    ]


def _is_option(job: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether the table of options shows it: as the value given, or as that of an option left open."""
    return name in job and job[name] in (None, value)


def _fact_text(name: str, value: Any) -> str:
    _, unit = _FACTS.get(name, ("", ""))
    if unit == "%" and isinstance(value, float):
        return percent(value)
    text = as_words(value)
    return f"{text} {unit}" if unit else text


def _spaced(name: str) -> str:
    return name.replace("_", " ")


# ---- captions by kind: title, headline and predictions of each image

_Caption = tuple[str, str, list[Prediction]]


def _of_any(facts: _Facts) -> list[_Caption]:
    return []


def _of_ascent(facts: _Facts) -> list[_Caption]:
    return [_of_target(target) for target in _mappings(facts.get("targets"))]


def _of_target(target: _Facts) -> _Caption:
    predictions, probability, rank = (
        _predictions(target.get("predicted")),
        target.get("probability"),
        target.get("rank"),
    )
    headline = ""
    if isinstance(probability, float) and isinstance(rank, int):
        place = "predicted first" if rank == 0 else f"predicted at place {rank + 1}"
        headline = f"{percent(probability)}, {place}"
    elif target.get("layer"):
        headline = "mean of the channel" if target.get("index") is not None else "energy of the layer"
    return str(target.get("name", "")), headline, predictions


def _of_fool(facts: _Facts) -> list[_Caption]:
    before, after = _predictions(facts.get("before")), _predictions(facts.get("after"))
    if not before or not after:
        return []
    headline = f"{after[0].label} {after[0].text}; the original is {before[0].label} {before[0].text}"
    return [(f"Classified as {after[0].label}", headline, after)]


def _of_dream(facts: _Facts) -> list[_Caption]:
    ratio = facts.get("energy_ratio")
    return [("Dream", f"{as_words(ratio)} times the layers' energy" if isinstance(ratio, float) else "", [])]


def _of_invert(facts: _Facts) -> list[_Caption]:
    captions: list[_Caption] = []
    for each in _mappings(facts.get("layers")):
        error, relative = each.get("normalised_error"), each.get("error_over_pairwise")
        headline = f"error {as_words(error)}" if isinstance(error, float) else ""
        if isinstance(relative, float):
            headline += f", {as_words(relative)} of the distance between images"
        captions.append((str(each.get("layer", "")), headline, []))
    return captions


def _of_texture(facts: _Facts) -> list[_Caption]:
    fell = facts.get("fell_by")
    return [("Texture", f"Gram loss {as_words(fell)} times below that of noise" if isinstance(fell, float) else "", [])]


def _of_quilt(facts: _Facts) -> list[_Caption]:
    return [("Texture", f"{facts['blocks']} blocks of the source" if "blocks" in facts else "", [])]


def _of_efros(facts: _Facts) -> list[_Caption]:
    return [("Texture", "grown pixel by pixel", [])]


_CAPTIONS: Mapping[str, Callable[[_Facts], list[_Caption]]] = {
    "ascent": _of_ascent,
    "dream": _of_dream,
    "efros": _of_efros,
    "fool": _of_fool,
    "invert": _of_invert,
    "quilt": _of_quilt,
    "texture": _of_texture,
}


def _mappings(value: Any) -> list[_Facts]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _predictions(value: Any) -> list[Prediction]:
    known = [each for each in _mappings(value) if isinstance(each.get("probability"), float)]
    return [
        Prediction(str(each.get("label", "")), percent(each["probability"]), each["probability"])
        for each in known[:_SHOWN_PREDICTIONS]
    ]
