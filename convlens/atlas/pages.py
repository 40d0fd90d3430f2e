"""The pages of an atlas, and the images that its patches come from, written into a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convlens import image
from convlens.atlas.site_dir import IMAGES, PAGE, Record
from convlens.report.atlas_page import ASSETS, render_channel, render_index, render_layer
from convlens.report.html import asset
from convlens.types import Bytes8, Step, no_op


def write_pages(
    folder: Path,
    facts: Mapping[str, Any],
    records: Sequence[Record],
    view: Callable[[str], Bytes8],
    *,
    on_step: Callable[[Step], None] = no_op,
) -> None:
    """The index, the pages of layers and channels, and their style and script; ``view`` gives an image by its id."""
    _write_images(folder / IMAGES, records, view)
    for name, parts in ASSETS.items():
        _write(folder / name, "".join(asset(part) for part in parts))
    _write(folder / PAGE, render_index(facts, records))
    done = 0
    for layer in facts["layers"]:
        own = [record for record in records if record["layer"] == layer["name"]]
        _write(folder / layer["page"], render_layer(facts, layer, own))
        for place, record in enumerate(own):
            before, after = (own[n]["channel"] if 0 <= n < len(own) else None for n in (place - 1, place + 1))
            page = render_channel(facts, layer, record, before=before, after=after)
            _write(folder / layer["channel_page"].format(channel=record["channel"]), page)
            done += 1
            on_step(Step("pages", done, len(records)))


def _write_images(folder: Path, records: Sequence[Record], view: Callable[[str], Bytes8]) -> None:
    shown = {patch["view"]: patch["image"] for record in records for patch in record["patches"]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, image_id in sorted(shown.items()):
        (folder / name).write_bytes(image.encode_jpeg(view(image_id), quality=85))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
