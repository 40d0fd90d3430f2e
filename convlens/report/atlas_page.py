"""The pages of an atlas: its layers, a layer's channels as a grid, and a channel with all that is known of it.

Style and script are files beside the pages, for there are thousands of those. In all text may be hostile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convlens.report.html import environment, legible, script_data
from convlens.visualization.colourbar import tick_values

Json = Mapping[str, Any]

ASSETS: Mapping[str, Sequence[str]] = {"atlas.css": ("report.css", "atlas.css"), "atlas.js": ("atlas.js",)}
"""The files beside the pages, and what of this folder they consist of."""

_ROOT = "../../"  # from the pages of a layer
_FEW_PIXELS = 64  # crops with fewer are shown as squares
_WIDTH, _HEIGHT, _BASE = 320, 96, 96  # of a histogram, in SVG units; the bars stand on the base
_GRADIENTS = {"guided": "guided backprop", "saliency": "the gradient"}
_SAMPLES = 6  # channels that stand for a layer on the index


def render_index(facts: Json, records: Sequence[Json]) -> str:
    """The site's first page: a card a layer, and a search over all channels."""
    by_layer = {layer["name"]: [r for r in records if r["layer"] == layer["name"]] for layer in facts["layers"]}
    cards = [_LayerCard(layer, list(_samples(layer, by_layer[layer["name"]]))) for layer in facts["layers"]]
    found = [_Tile(layer, record, "") for layer in facts["layers"] for record in by_layer[layer["name"]]]
    data = [[legible(part) for part in _entry(tile)] for tile in found]
    return _render("atlas_index.html.j2", facts=facts, cards=cards, count=len(found), data=script_data(data), root="")


def render_layer(facts: Json, layer: Json, records: Sequence[Json]) -> str:
    """A layer's page: all its channels, to search and to sort."""
    neighbours = _around([each["name"] for each in facts["layers"]], layer["name"])
    before, after = (next((each for each in facts["layers"] if each["name"] == name), None) for name in neighbours)
    tiles = [_Tile(layer, record, _ROOT) for record in records]
    return _render("atlas_layer.html.j2", facts=facts, layer=layer, tiles=tiles, before=before, after=after, root=_ROOT)


def render_channel(facts: Json, layer: Json, record: Json, *, before: int | None, after: int | None) -> str:
    """A channel's page; ``before`` and ``after`` are the numbers of the channels beside it."""
    folder = f"{_ROOT}{layer['pictures']}/{record['channel']}"
    strongest = record["strongest"]
    return _render(
        "atlas_channel.html.j2",
        facts=facts,
        layer=layer,
        record=record,
        folder=folder,
        root=_ROOT,
        before=before,
        after=after,
        pictures=[
            (each["file"], each["activation"], _times(each["activation"], strongest)) for each in record["pictures"]
        ],
        patches=[_PatchView(each, facts) for each in record["patches"]],
        gradient_name=_GRADIENTS.get(facts["options"]["backprop"], ""),
        histogram=_histogram(record),
        predicted=_bars(record["predicted"], "mean"),
        labelled=_bars(record["labelled"], "mean"),
        head={side: _bars(weights, "weight") for side, weights in record.get("head", {}).items()},
    )


def number(value: float) -> str:
    """Three digits that count, with a true minus sign."""
    return f"{value:.3g}".replace("-", "−")


def _render(template: str, **values: Any) -> str:
    return environment().get_template(template).render(number=number, **values)


# ---- grids


@dataclass(frozen=True)
class _LayerCard:
    layer: Json
    samples: Sequence[str]


@dataclass(frozen=True)
class _Tile:
    """A channel in a grid. ``root`` leads from the page to the site."""

    layer: Json
    record: Json
    root: str

    @property
    def channel(self) -> int:
        return int(self.record["channel"])

    @property
    def page(self) -> str:
        return f"{self.root}{self.layer['channel_page'].format(channel=self.channel)}"

    @property
    def folder(self) -> str:
        return f"{self.root}{self.layer['pictures']}/{self.channel}"

    @property
    def picture(self) -> str:
        return f"{self.folder}/{self.record['pictures'][0]['file']}"

    @property
    def patch(self) -> str:
        return f"{self.folder}/{self.record['patches'][0]['file']}"

    @property
    def label(self) -> str:
        """The class that the channel speaks for most; empty of a network without classes."""
        best = self.record["labelled"] or self.record["predicted"]
        head = self.record.get("head", {}).get("for")
        return str((head or best)[0]["label"]) if head or best else ""

    @property
    def active(self) -> float:
        """The share of images in which some unit is above 0."""
        return float(self.record["active"] / self.record["images"])

    @property
    def words(self) -> str:
        """What a search looks at."""
        record = self.record
        classes = [*record["predicted"][:3], *record["labelled"][:3], *record.get("head", {}).get("for", ())]
        labels = dict.fromkeys(each["label"] for each in classes)
        return "\n".join([*labels, *(patch["image"] for patch in record["patches"])]).lower()


def _entry(tile: _Tile) -> tuple[str, ...]:
    """What the search on the index knows of a channel: name, page, picture, class, and the words to look among."""
    name = str(tile.layer["name"])
    return f"{name} {tile.channel}", tile.page, tile.picture, tile.label, f"{name} {tile.channel}\n{tile.words}".lower()


def _samples(layer: Json, records: Sequence[Json]) -> Iterator[str]:
    """Pictures of channels evenly spread."""
    count = min(_SAMPLES, len(records))
    for n in range(count):
        yield _Tile(layer, records[n * len(records) // count], "").picture


def _around(names: Sequence[str], name: str) -> tuple[str, str]:
    place = names.index(name)
    return (names[place - 1] if place else ""), (names[place + 1] if place + 1 < len(names) else "")


# ---- one channel


class _PatchView:
    """A patch, and where in its image it lies."""

    def __init__(self, patch: Json, facts: Json) -> None:
        top, left, bottom, right = patch["box"]
        self.patch = patch
        self.few_pixels = max(bottom - top, right - left) < _FEW_PIXELS
        self.height, self.width = facts["image_size"]
        self.box = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        self.size = f"{bottom - top}×{right - left}"
        self.is_whole = (top, left, bottom, right) == (0, 0, self.height, self.width)


@dataclass(frozen=True)
class _Bar:
    """One bar of a histogram in SVG units, and what it says."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class _Histogram:
    width: int
    height: int
    bars: Sequence[_Bar]
    ticks: Sequence[tuple[float, str]]
    most: int
    zero: float | None


def _histogram(record: Json) -> _Histogram:
    counts, start, step = (record["histogram"][name] for name in ("counts", "start", "width"))
    most, wide = max(counts, default=1), _WIDTH / max(1, len(counts))
    end = start + step * len(counts)
    bars = []
    for n, count in enumerate(counts):
        low = start + n * step
        tall = _BASE * count / most
        text = f"{count} {'image' if count == 1 else 'images'} from {number(low)} to {number(low + step)}"
        bars.append(_Bar(round(n * wide, 2), round(_BASE - tall, 2), round(wide, 2), round(tall, 2), text))
    places = [(value, (value - start) / (end - start) * _WIDTH) for value in tick_values(start, end, most=5)]
    ticks = [(round(x, 2), number(value)) for value, x in places]
    zero = next((x for value, x in places if value == 0 and start < 0), None)
    return _Histogram(_WIDTH, _HEIGHT, bars, ticks, most, zero)


@dataclass(frozen=True)
class _ClassBar:
    label: str
    text: str
    share: float
    images: int | None


def _bars(classes: Sequence[Json], key: str) -> list[_ClassBar]:
    """Of lengths relative to the largest; the negative ones of a list that has others are empty."""
    values = [each[key] for each in classes]
    longest = max(map(abs, values), default=0.0) or 1.0
    # Weights against a class are all negative, and as long as they are large.
    sign = -1 if values and max(values) <= 0 and key == "weight" else 1
    return [
        _ClassBar(each["label"], number(each[key]), max(0.0, sign * each[key] / longest), each.get("images"))
        for each in classes
    ]


def _times(activation: float, strongest: float) -> str:
    """How many times the strongest patch's activation; empty where that says nothing."""
    return f"{number(activation / strongest)} × the strongest patch" if strongest > 0 and activation > 0 else ""
