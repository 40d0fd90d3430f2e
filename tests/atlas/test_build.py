"""A whole atlas of a small network: its files, what a kill leaves of them, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import classifier
from PIL import Image
from small_atlases import FIRST, LAST, QUICK, atlas, contents, images_with_a_broken_one, small_model
from small_evaluations import SIDE, write_images
from strict_page import Page
from torch import nn

from convlens import image
from convlens.atlas import ChannelOptions, read_atlas
from convlens.atlas.build import default_layers
from convlens.atlas.records import folder_names
from convlens.atlas.site_dir import read_records
from convlens.errors import ConvLensError, RequestError, UnsupportedModelError
from convlens.inspection import receptive_field
from convlens.models import load
from convlens.types import Step


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images_with_a_broken_one(tmp_path_factory.mktemp("atlas") / "images")


@pytest.fixture(scope="module")
def site(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    atlas(images, out)
    return out


def test_every_channel_has_a_record_and_a_page_at_its_address(site: Path) -> None:
    facts, records = read_atlas(site), read_records(site)
    assert [(record["layer"], record["channel"]) for record in records] == [
        *((FIRST, channel) for channel in range(6)),
        *((LAST, channel) for channel in range(8)),
    ]
    assert facts["images"] == 5
    assert [name for name, _ in facts["unreadable"]] == ["broken.png"]
    layers = {layer["name"]: layer for layer in facts["layers"]}
    for record in records:
        layer = layers[record["layer"]]
        assert (site / layer["channel_page"].format(channel=record["channel"])).is_file()
        for part in ("pictures", "patches"):
            assert all(
                (site / layer["pictures"] / str(record["channel"]) / each["file"]).is_file() for each in record[part]
            )
    assert layers[FIRST]["receptive_field"] == list(receptive_field(small_model(), FIRST).size) == [3, 3]
    assert (layers[FIRST]["feeds_head"], layers[LAST]["feeds_head"]) == (False, True)


def test_every_address_in_the_pages_leads_to_a_file_of_the_site(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 1 + 2 + 6 + 8
    for path in pages:
        page = Page(path.read_text(encoding="utf-8"))
        addresses = [*page.values("href"), *page.values("src"), *page.values("data-patch")]
        for address in addresses:
            if not address.startswith(("#", "data:")):
                assert (path.parent / address).resolve().is_file(), (path, address)


def test_a_patch_is_cut_from_the_image_that_its_record_names(site: Path, images: Path) -> None:
    """Small crops are lossless, so the pixels can be compared."""
    model = small_model()
    record = next(record for record in read_records(site) if record["layer"] == FIRST)
    for patch in record["patches"]:
        top, left, bottom, right = patch["box"]
        view_HWC = image.prepare(image.read(images / patch["image"]), model.spec).display_HWC
        inside = max(top, 0), max(left, 0), min(bottom, SIDE), min(right, SIDE)
        stored = np.asarray(Image.open(site / f"pictures/{FIRST}/{record['channel']}" / patch["file"]))
        rows = slice(inside[0] - top, inside[2] - top), slice(inside[1] - left, inside[3] - left)
        np.testing.assert_array_equal(stored[rows], view_HWC[inside[0] : inside[2], inside[1] : inside[3]])
        assert (patch["y"], patch["x"]) == (top + 1, left + 1)  # 3 × 3 pixels around the unit
        whole = np.asarray(Image.open(site / "images" / patch["view"]).convert("L"), float)
        expected = np.asarray(Image.fromarray(view_HWC).convert("L"), float)
        assert np.corrcoef(whole.ravel(), expected.ravel())[0, 1] > 0.9  # a JPEG


def test_the_record_holds_the_head_s_weights_and_the_classes_means(site: Path, images: Path) -> None:
    model = small_model()
    record = next(record for record in read_records(site) if (record["layer"], record["channel"]) == (LAST, 5))
    weight_K = model.module[6].weight.detach().numpy()[:, 5]
    told = {each["index"]: each["weight"] for side in ("for", "against") for each in record["head"][side]}
    assert told == {k: pytest.approx(float(weight_K[k]), rel=1e-5) for k in range(3)}
    means: dict[int, list[float]] = {}
    for path in sorted(images.glob("[0-9]*.png")):
        x_NCHW = torch.from_numpy(image.prepare(image.read(path), model.spec).x_CHW)[None]
        with torch.no_grad():
            means.setdefault(int(model.module(x_NCHW).argmax()), []).append(
                float(model.module[:4](x_NCHW)[0, 5].mean())
            )
    assert {each["index"]: (each["mean"], each["images"]) for each in record["predicted"]} == {
        index: (pytest.approx(np.mean(values), rel=1e-4), len(values)) for index, values in means.items()
    }


class Interrupted(Exception):
    pass


def interrupt(stage: str, done: int) -> Any:
    def on_step(step: Step) -> None:
        if (step.stage, step.done) == (stage, done):
            raise Interrupted

    return on_step


@pytest.mark.parametrize(("stage", "done"), [("images", 6), ("channels", 0), ("channels", 9), ("pages", 4)])
def test_an_interrupted_atlas_ends_with_the_files_of_one_run(
    site: Path, images: Path, tmp_path: Path, stage: str, done: int
) -> None:
    with pytest.raises(Interrupted):
        atlas(images, tmp_path / "cut", on_step=interrupt(stage, done))
    assert not (tmp_path / "cut" / "atlas.json").exists()
    steps: list[Step] = []
    atlas(images, tmp_path / "cut", on_step=steps.append)
    first = next(step for step in steps if step.stage == "channels")
    assert first.done == {"images": 0, "channels": done, "pages": 14}[stage]
    assert contents(tmp_path / "cut") == contents(site)


def test_a_kill_while_the_folder_is_completed_loses_no_picture(
    site: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the parts that are moved into place the first has been, when the process dies."""
    out, moved = tmp_path / "cut", Path.rename

    def rename_one(path: Path, target: Path) -> Path:
        if (out / "pictures").exists():
            raise Interrupted
        return moved(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_one)
        with pytest.raises(Interrupted):
            atlas(images, out)
    atlas(images, out)
    assert contents(out) == contents(site)


def test_half_a_line_is_made_again(site: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        atlas(images, tmp_path / "cut", on_step=interrupt("channels", 3))
    journal = tmp_path / "cut" / ".partial" / "records.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    atlas(images, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(site)


def test_a_finished_atlas_is_replaced_only_when_that_is_said(site: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    atlas(images, out, channels=[0])
    with pytest.raises(RequestError, match="is finished already"):
        atlas(images, out)
    atlas(images, out, overwrite=True)
    assert contents(out) == contents(site)


def test_other_settings_are_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        atlas(images, tmp_path / "out", on_step=interrupt("channels", 2))
    with pytest.raises(RequestError, match=r"layers was \['1', '3'\] and is \['1'\]"):
        atlas(images, tmp_path / "out", layers=(FIRST,))


def test_a_folder_of_other_things_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match=r"holds other things than an atlas \(thesis\.txt\)"):
        atlas(images, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_each_layer_shows_those_of_the_channels_that_it_has(images: Path, tmp_path: Path) -> None:
    records = atlas(images, tmp_path / "out", channels=[0, 7]).records
    assert [(record["layer"], record["channel"]) for record in records] == [(FIRST, 0), (LAST, 0), (LAST, 7)]
    with pytest.raises(RequestError, match=r"layer '1' has none of the channels 7; there are 0\.\.5"):
        atlas(images, tmp_path / "other", channels=[7])


def test_labels_give_a_second_list_of_classes(images: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted(images.glob("*.png"))]
    (tmp_path / "labels.csv").write_text("file,class_index\n" + "".join(f"{name},2\n" for name in names))
    (record,) = atlas(images, tmp_path / "out", layers=(LAST,), channels=[1], labels=tmp_path / "labels.csv").records
    assert [(each["label"], each["images"]) for each in record["labelled"]] == [("class 2", 5)]
    assert record["labelled"][0]["mean"] == pytest.approx(record["mean"])


def test_more_patches_than_images_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"6 patches .* but 5 of 6 could be read; broken\.png"):
        atlas(images, tmp_path / "out", options=ChannelOptions(k=6, maximisation=QUICK.maximisation))


def test_a_network_without_relus_is_refused_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = classifier(network, classes=3, crop=SIDE, embedding_layer="4", gradcam_layer="1")
    with pytest.raises(UnsupportedModelError, match=r"(?i)silu"):
        atlas(images, tmp_path / "out", model, layers=("1",))
    assert not (tmp_path / "out").exists()
    plain = ChannelOptions(k=1, backprop="saliency", maximisation=QUICK.maximisation)
    assert len(atlas(images, tmp_path / "out", model, layers=("1",), options=plain).records) == 4


def test_a_unit_at_the_end_of_its_range_is_said_to_have_no_gradient(images: Path, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    network[0].weight.data[0] *= 1000  # saturated in each image; the other channel is as it was
    network[0].weight.data[1].fill_(0.01)
    model = classifier(network, classes=3, crop=SIDE, embedding_layer="4", gradcam_layer="1")
    saturated, other = atlas(images, tmp_path / "out", model, layers=("1",)).records
    assert [patch["gradient"] for patch in saturated["patches"]] == ["", ""]
    assert [patch["gradient"] for patch in other["patches"]] == ["gradient-1.png", "gradient-2.png"]
    text = Page((tmp_path / "out" / "layers" / "1" / "0.html").read_text()).text
    assert "no gradient: the unit is at the end of its range" in text


def test_a_file_that_changes_under_way_ends_the_run(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)

    def change(step: Step) -> None:
        if step.stage == "images" and step.done == 3:
            for path in images.glob("*.png"):
                Image.new("RGB", (24, 20)).save(path)

    with pytest.raises(ConvLensError, match="has changed since its patches were found"):
        atlas(images, tmp_path / "out", on_step=change)


def test_folders_of_layers_are_safe_and_all_different() -> None:
    names = folder_names(["blocks.1.0", "..", "a/b", "a_b", "A_B"])
    assert names == {"blocks.1.0": "blocks.1.0", "..": "layer", "a/b": "a_b", "a_b": "a_b~2", "A_B": "A_B~3"}


def test_by_default_layers_of_all_depths_and_the_one_that_feeds_the_head_are_shown() -> None:
    names = default_layers(load(device="cpu"))
    assert names[0] == "conv_stem"
    assert names[-1] == load(device="cpu").spec.gradcam_layer
    assert 3 <= len(names) <= 6


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    hostile = '<script>alert("1")<!--#?%.png'
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(buffer, "PNG")
    (tmp_path / "images" / hostile).write_bytes(buffer.getvalue())
    options = ChannelOptions(k=1, maximisation=QUICK.maximisation)
    atlas(tmp_path / "images", tmp_path / "out", layers=(LAST,), channels=[0], options=options)
    for path in (tmp_path / "out").rglob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        assert all(attributes.get("src") or attributes.get("type") for attributes in page.all("script"))
    assert hostile in Page((tmp_path / "out" / "layers" / LAST / "0.html").read_text()).text
    assert json.loads((tmp_path / "out" / "records.jsonl").read_text())["patches"][0]["image"] == hostile
