"""An atlas beside the page: copied into the site, with what the page must know of each channel to lead there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convlens.errors import RequestError

_FOLDER = "atlas"
_LEFT_OUT = (".*", "records.jsonl")  # a page reads none of them


@dataclass(frozen=True)
class SiteAtlas:
    """A finished atlas: ``facts`` are those of its atlas.json, ``records`` those of its records.jsonl."""

    folder: Path
    facts: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer["name"] for layer in self.facts["layers"])

    def require_weights(self, weights_sha256: str) -> None:
        """RequestError unless it is of these very weights: other weights' channels look for other things."""
        if weights_sha256 != self.facts["weights_sha256"]:
            theirs, ours = self.facts["weights_sha256"][:12], weights_sha256[:12]
            raise RequestError(
                f"{self.folder} is the atlas of {self.facts['model']} with weights {theirs}, but the model has weights "
                f"{ours}; use the model it was made of, or make one of this model by `convlens atlas`",
                field="atlas",
            )


def write_atlas(atlas: SiteAtlas, site: Path) -> dict[str, Any]:
    """Copy the atlas into the site; gives its part of ``site.json``, whose addresses are relative to the site."""
    shutil.copytree(atlas.folder, site / _FOLDER, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    return {
        "page": f"{_FOLDER}/index.html",
        "images": atlas.facts["images"],
        "layers": [_describe_layer(layer, atlas.records) for layer in atlas.facts["layers"]],
    }


def _describe_layer(layer: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [record for record in records if record["layer"] == layer["name"]]
    return {"name": layer["name"], "channels": [_describe_channel(layer, record) for record in own]}


def _describe_channel(layer: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """``strongest`` is the channel's largest activation on the atlas's images."""
    channel = record["channel"]
    return {
        "channel": channel,
        "strongest": record["strongest"],
        "page": f"{_FOLDER}/{layer['channel_page'].format(channel=channel)}",
        "picture": f"{_FOLDER}/{layer['pictures']}/{channel}/{record['pictures'][0]['file']}",
    }
