"""Gradient ascent: images that maximise a class or a channel, and what each regulariser does to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convlens.lecture.base import Command, Drawn, Figure, Lecture, chapter
from convlens.lecture.outputs import captioned, job_numbers, job_page, read_image, sheet
from convlens.report.html import percent

# What it is called -> the folder's name, and options after the class.
_REGULARISERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("none", ("--preset", "simonyan", "--set", "l2=0")),
    "L2, λ‖I‖² (Simonyan)": ("l2", ("--preset", "simonyan", "--set", "l2=0.02")),
    "total variation": ("tv", ("--preset", "simonyan", "--set", "l2=0", "--set", "tv=0.1")),
    "decay and blur (Yosinski 3)": ("blur", ("--preset", "yosinski3")),
    "blur, small norms clipped (Yosinski 1)": ("clip", ("--preset", "yosinski1")),
    "shifts, Fourier (Lucid)": ("lucid", ("--preset", "lucid")),
    "wide shifts, noise, coarse first (robust)": ("robust", ("--preset", "robust")),
}
_COLUMNS = 4
_NOT_SHOWN = (
    "A picture that excites the network is not what the class looks like to us, nor the only one: other starts give "
    "other pictures. A high probability proves nothing, as images close to noise reach it too."
)


@chapter("ascent", title="Gradient ascent", place=10)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """Regularisers side by side, several classes, channels of the middle layer."""
    yield _by_regulariser(lecture)
    yield _classes(lecture)
    yield _channels(lecture)


def _by_regulariser(lecture: Lecture) -> Figure:
    layer, channels = _layer_and_channels(lecture)
    classes = lecture.maximised(1)
    # A network without classes has channels all the same.
    target = classes[0] if classes else f"channel {channels[0]} of {layer}"
    maximised = classes or ["--layer", layer, "--channels", str(channels[0])]
    steps = lecture.size(200, 3)
    commands = tuple(
        lecture.command("ascent", *maximised, *options, "--steps", steps, output=f"ascent-{name}")
        for name, options in _REGULARISERS.values()
    )

    def draw() -> Drawn:
        tiles, numbers, facts = [], {}, []
        for (title, (name, _)), command in zip(_REGULARISERS.items(), commands, strict=True):
            folder = lecture.path(command.output)
            numbers[name] = job_numbers(folder)
            (made,) = numbers[name]["facts"]["targets"]
            score = _score(made) or f"objective {numbers[name]['objective']:.3g}"
            tiles.append(captioned(read_image(_only_image(folder)), f"{title}: {score}"))
            facts.append((title, score))
        pages = [job_page(f"ascent-{name}", title) for title, (name, _) in _REGULARISERS.items()]
        return Drawn(sheet(tiles, columns=_COLUMNS), numbers, facts, pages)

    return Figure(
        name="ascent-regularisers",
        title=f"{target[0].upper()}{target[1:]}, by each regulariser",
        shows=f"Images that maximise {target}, each from {steps} steps, under one prior after another: "
        "without any, fine noise suffices; the stronger the prior, the more parts of things come out.",
        does_not_show=_NOT_SHOWN,
        commands=commands,
        draw=draw,
        photograph=True,
    )


def _classes(lecture: Lecture) -> Figure:
    targets = lecture.maximised(lecture.size(4, 2))
    command = lecture.command("ascent", *targets, "--steps", lecture.size(256, 3), output="ascent-classes")
    return Figure(
        name="ascent-classes",
        title="Classes",
        shows="What excites the network's scores of these classes most, by the default preset.",
        does_not_show=_NOT_SHOWN,
        commands=(command,),
        draw=_all_images(lecture, command),
        needs_classes=True,
        photograph=True,
    )


def _channels(lecture: Lecture) -> Figure:
    layer, channels = _layer_and_channels(lecture)
    command = lecture.command(
        *("ascent", "--layer", layer, "--channels", ",".join(map(str, channels))),
        *("--steps", lecture.size(192, 3)),
        output="ascent-channels",
    )
    return Figure(
        name="ascent-channels",
        title=f"Channels of {layer}",
        shows=f"Images that excite single channels of {layer}, the first of those whose patches are shown above: "
        "compare the two.",
        does_not_show=_NOT_SHOWN,
        commands=(command,),
        draw=_all_images(lecture, command),
        photograph=True,
    )


def _layer_and_channels(lecture: Lecture) -> tuple[str, list[int]]:
    """Those whose patches are shown."""
    (layer,) = lecture.layers(middle=0.5).values()
    return layer, lecture.channels(layer, lecture.size(4, 2))


def _all_images(lecture: Lecture, command: Command) -> Any:
    """All images of the job side by side."""

    def draw() -> Drawn:
        folder = lecture.path(command.output)
        numbers = job_numbers(folder)
        targets = numbers["facts"]["targets"]
        captions = [_caption(target) for target in targets]
        images = [read_image(path) for path in sorted(folder.glob("[0-9][0-9]-*.png"))]
        tiles = [captioned(image, caption) for image, caption in zip(images, captions, strict=True)]
        facts = [(target["name"], _score(target)) for target in targets if _score(target)]
        return Drawn(sheet(tiles, columns=_COLUMNS), numbers, facts, [job_page(folder.name)])

    return draw


def _only_image(folder: Path) -> Path:
    (path,) = folder.glob("00-*.png")
    return path


def _caption(target: dict[str, Any]) -> str:
    """A class with its score, or a channel with its layer."""
    if target.get("layer"):
        return f"{target['layer']}, channel {target['index']}"
    return ", ".join(filter(None, (target["name"], _score(target))))


def _score(target: dict[str, Any]) -> str:
    """``p > 99.9 %, score 21.3`` of a class; nothing of a channel."""
    if target.get("probability") is None:
        return ""
    share = percent(target["probability"])
    return f"p {share if share[0] in '<>' else f'= {share}'}, score {target['logit']:.1f}"
