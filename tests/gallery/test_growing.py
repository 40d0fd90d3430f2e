"""Galleries that grow, and builds that are killed and go on."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from extractions import build_batch_by_batch, mixed, photographs
from killable import Killable

from convlens.errors import GalleryError
from convlens.gallery import Gallery, add, build
from convlens.gallery.builder import EXTRACTION


def ids(gallery: Gallery) -> list[str]:
    return [entry.id for entry in gallery.entries]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- add


def test_adding_gives_what_building_both_would_have_given(tmp_path: Path) -> None:
    first = photographs(tmp_path / "first", 11)
    second = tmp_path / "second"
    photographs(second / "more", 9, broken=(4,))
    grown = build(first, tmp_path / "grown", mixed(), batch=4).gallery
    report = add(second, tmp_path / "grown", mixed(), batch=4)
    assert report.added == 8 and [id for id, _ in report.unreadable] == ["more/b/004.jpg"]
    alone = build(second, tmp_path / "alone", mixed(), batch=4).gallery
    both = Gallery.open(tmp_path / "grown")
    np.testing.assert_array_equal(both.features_ND, np.concatenate([grown.features_ND, alone.features_ND]))
    assert list(both.entries) == [*grown.entries, *alone.entries]
    assert not (tmp_path / "grown" / EXTRACTION).exists()


def test_an_image_that_is_there_already_is_refused_or_replaced(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 7)
    build(folder, tmp_path / "gallery", mixed(), batch=4)
    before = contents(tmp_path / "gallery")
    with pytest.raises(GalleryError, match=r"has a/000.jpg and 6 more already; name other images, or replace them"):
        add(folder, tmp_path / "gallery", mixed())
    assert contents(tmp_path / "gallery") == before
    few = tmp_path / "few"
    (few / "a").mkdir(parents=True)
    (few / "a" / "003.jpg").write_bytes((folder / "b" / "001.jpg").read_bytes())
    report = add(few, tmp_path / "gallery", mixed(), replace=True)
    fresh = build(folder, tmp_path / "fresh", mixed(), batch=4).gallery
    assert ids(report.gallery) == [*(id for id in ids(fresh) if id != "a/003.jpg"), "a/003.jpg"]
    old, new = (dict(zip(ids(each), each.features_ND.tolist(), strict=True)) for each in (fresh, report.gallery))
    np.testing.assert_allclose(new["a/003.jpg"], old["b/001.jpg"], atol=1e-6)


def test_other_weights_cannot_add_and_the_gallery_stays(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 5)
    build(folder, tmp_path / "gallery", mixed())
    before = contents(tmp_path / "gallery")
    with pytest.raises(GalleryError, match="use the model it was made by"):
        add(photographs(tmp_path / "more", 3), tmp_path / "gallery", mixed(seed=1))
    with pytest.raises(GalleryError, match="no gallery in"):
        add(folder, tmp_path / "nowhere", mixed())
    assert contents(tmp_path / "gallery") == before and not (tmp_path / "nowhere").exists()


def test_labels_and_thumbnails_go_along(tmp_path: Path) -> None:
    build(photographs(tmp_path / "pictures", 4), tmp_path / "gallery", mixed(), thumbnail_side=20)
    gallery = add(photographs(tmp_path / "more" / "d", 3), tmp_path / "gallery", mixed(), replace=True).gallery
    assert {entry.label for entry in gallery.entries} == {"a", "b", "c"}
    table = tmp_path / "labels.csv"
    table.write_text("file,label\nx.jpg,new\n")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.jpg").write_bytes(next((tmp_path / "pictures").rglob("*.jpg")).read_bytes())
    gallery = add(tmp_path / "x", tmp_path / "gallery", mixed(), label_from=table).gallery
    assert (gallery.entries[-1].id, gallery.entries[-1].label) == ("x.jpg", "new")
    assert all(entry.thumbnail.startswith(b"\xff\xd8") for entry in gallery.entries)


# ---- killed and resumed


def start(folder: Path, out: Path) -> Killable:
    return Killable(build_batch_by_batch, folder, out, torch.get_num_threads())


@pytest.mark.slow
def test_a_build_killed_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 120, broken=(7, 50))
    build(folder, tmp_path / "whole", mixed(), batch=4)
    build(photographs(tmp_path / "before", 5), tmp_path / "killed", mixed())
    old = contents(tmp_path / "killed")
    chance = random.Random(0)
    for turn in range(8):
        builder = start(folder, tmp_path / "killed")
        stop_at = chance.randrange(1, 40)
        for line in builder.output:
            if line.strip() == "built" or (line.strip().isdigit() and int(line) >= stop_at + 12 * turn):
                break
        time.sleep(chance.uniform(0, 0.02))
        builder.kill()
        seen = {name: data for name, data in contents(tmp_path / "killed").items() if EXTRACTION not in name}
        assert seen == old or len(Gallery.open(tmp_path / "killed")) == 118
    build(folder, tmp_path / "killed", mixed(), batch=4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_an_extraction_that_was_finished_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photographs(tmp_path / "pictures", 6)
    build(folder, tmp_path / "whole", mixed())

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("convlens.gallery.builder.write_parts", broken)
        build(folder, tmp_path / "gallery", mixed())
    assert (tmp_path / "gallery" / EXTRACTION / "manifest.json").is_file()
    steps: list[int] = []
    build(folder, tmp_path / "gallery", mixed(), on_step=lambda done, _: steps.append(done))
    assert steps == [6]
    assert contents(tmp_path / "gallery") == contents(tmp_path / "whole")


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_other_weights_began_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photographs(tmp_path / "pictures", 6)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("convlens.gallery.builder.write_parts", interrupted)
        build(folder, tmp_path / "gallery", mixed(seed=1))
    build(folder, tmp_path / "gallery", mixed())
    build(folder, tmp_path / "whole", mixed())
    assert contents(tmp_path / "gallery") == contents(tmp_path / "whole")


def test_a_folder_with_other_things_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "pictures", 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(GalleryError, match="holds other things than a gallery"):
        build(folder, tmp_path / "other", mixed())
    assert contents(tmp_path / "other") == {"thesis.txt": b"years of work"}
    broken = photographs(tmp_path / "broken", 3, broken=(0, 1, 2))
    with pytest.raises(GalleryError, match="none of 3 images could be used"):
        build(broken, tmp_path / "new", mixed())
    assert not (tmp_path / "new").exists()
