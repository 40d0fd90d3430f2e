"""An atlas in a site: its pages, the graph of its layers, and what leads from one to the other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from explorer_sites import described, site_without_graphs
from small_atlases import FIRST, LAST, atlas, small_model
from small_evaluations import SIDE, write_images
from torch import Tensor

from convlens.atlas.site_dir import read_atlas, read_records
from convlens.errors import RequestError
from convlens.explorer.atlas_files import SiteAtlas

pytestmark = pytest.mark.slow  # a graph is exported, and an atlas made

CHANNELS = (1, 4, 7)  # FIRST has but six


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SiteAtlas:
    folder = tmp_path_factory.mktemp("atlas")
    write_images(folder / "images", 4)
    atlas(folder / "images", folder / "atlas", channels=CHANNELS)
    (folder / "atlas" / ".partial").mkdir()  # what a run that begins again would leave
    return SiteAtlas(folder / "atlas", read_atlas(folder / "atlas"), read_records(folder / "atlas"))


@pytest.fixture(scope="module")
def site(made: SiteAtlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer") / "site"
    site_without_graphs(small_model(), folder, atlas=made)
    return folder


def layers(site: Path) -> dict[str, list[dict[str, Any]]]:
    return {layer["name"]: layer["channels"] for layer in described(site)["atlas"]["layers"]}


def test_the_pages_are_the_atlas_s(site: Path, made: SiteAtlas) -> None:
    copied = {path.relative_to(site / "atlas") for path in (site / "atlas").rglob("*") if path.is_file()}
    there = {path.relative_to(made.folder) for path in made.folder.rglob("*") if path.is_file()}
    assert copied == there - {Path("records.jsonl")}
    assert all((site / "atlas" / path).read_bytes() == (made.folder / path).read_bytes() for path in copied)
    assert not (site / "atlas" / ".partial").exists()


def test_the_page_learns_the_atlas_s_channels_with_their_pages_and_pictures(site: Path, made: SiteAtlas) -> None:
    channels = layers(site)
    assert {name: [each["channel"] for each in own] for name, own in channels.items()} == {
        FIRST: [1, 4],
        LAST: [1, 4, 7],
    }
    assert channels[LAST][1]["page"] == f"atlas/layers/{LAST}/4.html"
    assert all(
        (site / each[part]).is_file() for own in channels.values() for each in own for part in ("page", "picture")
    )
    assert (site / described(site)["atlas"]["page"]).is_file()


def test_the_page_learns_each_channel_s_largest_activation(site: Path, made: SiteAtlas) -> None:
    lines = (made.folder / "records.jsonl").read_text().splitlines()
    expected = {(each["layer"], each["channel"]): each["strongest"] for each in map(json.loads, lines)}
    found = {(name, each["channel"]): each["strongest"] for name, own in layers(site).items() for each in own}
    assert found == expected


def test_the_graph_gives_what_the_layers_of_the_atlas_give(site: Path) -> None:
    module = small_model().module
    expected: dict[str, Tensor] = {}
    for name in (FIRST, LAST):
        module.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: expected.__setitem__(name, output.detach())
        )
    x_NCHW = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE), dtype=np.float32)
    module(torch.from_numpy(x_NCHW))

    session = onnxruntime.InferenceSession(site / described(site)["graphs"]["features"]["file"])
    found = dict(zip((FIRST, LAST), session.run([FIRST, LAST], {"x_NCHW": x_NCHW}), strict=True))

    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=0, atol=1e-4 * float(values.abs().max()))


def test_a_site_without_an_atlas_says_so(tmp_path: Path) -> None:
    assert site_without_graphs(small_model(), tmp_path / "site")["atlas"] is None


def test_an_atlas_of_other_weights_is_refused_with_both(made: SiteAtlas, tmp_path: Path) -> None:
    model = small_model()
    other = replace(model, spec=replace(model.spec, weights_sha256="f" * 64))
    with pytest.raises(RequestError) as raised:
        site_without_graphs(other, tmp_path / "site", atlas=made)
    assert made.facts["weights_sha256"][:12] in raised.value.message
    assert "f" * 12 in raised.value.message
    assert not (tmp_path / "site").exists()


def test_a_kept_graph_that_no_longer_gives_the_network_s_numbers_is_exported_again(
    made: SiteAtlas, site: Path, tmp_path: Path
) -> None:
    edited = small_model()
    edited.module[0].bias.data += 1  # type: ignore[index, operator, union-attr]
    edited = replace(edited, source=small_model().source)

    site_without_graphs(edited, tmp_path / "site", atlas=made)

    x_NCHW = np.zeros((1, 3, SIDE, SIDE), np.float32)
    found, expected = (
        onnxruntime.InferenceSession(folder / "graphs" / "features.onnx").run([FIRST], {"x_NCHW": x_NCHW})[0]
        for folder in (tmp_path / "site", site)
    )
    with torch.no_grad():
        np.testing.assert_allclose(found, edited.module[:2](torch.from_numpy(x_NCHW)).numpy(), atol=1e-5)  # type: ignore[index, operator]
    assert np.abs(found - expected).max() > 0.5
