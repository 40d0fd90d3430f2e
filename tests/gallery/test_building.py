"""Folders of images to galleries, with a network whose embedding is the mean colour."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import classifier
from PIL import Image
from torch import Tensor, nn

from convlens.errors import GalleryError
from convlens.gallery import Gallery, build, build_from

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


class MeanColour(nn.Module):
    """The embedding is the mean of (colour / 255 − 0.5) / 0.25; how many images came at once is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        self.first.weight.data = torch.eye(3)[:, :, None, None]
        self.head = nn.Linear(3, 2)
        self.batches: list[int] = []

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.batches.append(len(x_NCHW))
        return self.head(self.first(x_NCHW).mean((2, 3)))


@pytest.fixture
def net():
    return classifier(MeanColour(), classes=2)


def plain(colour, size=(12, 9)) -> Image.Image:
    return Image.new("RGB", size, colour)


def save(folder: Path, name: str, colour=GREY) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    plain(colour).save(path)


def ids(gallery: Gallery) -> list[str]:
    return [entry.id for entry in gallery.entries]


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    save(folder, "warm/red.png", RED)
    save(folder, "warm/dark/Brown.PNG", (90, 40, 10))
    save(folder, "cold/blue.bmp", BLUE)
    save(folder, "grass.tiff", GREEN)
    save(folder, ".hidden/secret.png")
    save(folder, "warm/._red.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_becomes_a_gallery_sorted_by_path_and_labelled_by_folder(tmp_path, images, net):
    report = build(images, tmp_path / "gallery", net)
    assert (report.added, report.unreadable) == (4, ())
    assert [(entry.id, entry.label) for entry in Gallery.open(tmp_path / "gallery").entries] == [
        ("cold/blue.bmp", "cold"),
        ("grass.tiff", ""),
        ("warm/dark/Brown.PNG", "warm/dark"),
        ("warm/red.png", "warm"),
    ]


def test_distances_are_those_between_the_colours(tmp_path, images, net):
    gallery = build(images, tmp_path / "gallery", net, feature_space="raw").gallery
    red = np.array([[2.0, -2.0, -2.0]], dtype=np.float32)  # (1 − 0.5) / 0.25 and (0 − 0.5) / 0.25
    (found,) = gallery.query(red, k=4)
    brown = math.hypot(*((np.array([255, 0, 0]) - [90, 40, 10]) / 255 / 0.25))
    assert [n.id for n in found] == ["warm/red.png", "warm/dark/Brown.PNG", "cold/blue.bmp", "grass.tiff"]
    # the mean over pixels and the normalisation are taken in float32
    np.testing.assert_allclose([n.distance for n in found], [0, brown, math.sqrt(32), math.sqrt(32)], atol=1e-5)


def test_the_gallery_belongs_to_the_model_that_made_it(tmp_path, images, net):
    gallery = build(images, tmp_path / "gallery", net).gallery
    spec = net.spec
    assert (gallery.weights_sha256, gallery.model, gallery.embedding_layer) == (spec.weights_sha256, spec.name, "head")
    assert gallery.feature_space == "unit"


def test_thumbnails_are_jpegs_of_the_image(tmp_path, images, net):
    gallery = build(images, tmp_path / "gallery", net, thumbnail_side=20).gallery
    with Image.open(io.BytesIO(gallery.entries[3].thumbnail)) as small:
        assert (small.format, small.size) == ("JPEG", (20, 20))
        # JPEG's colours are subsampled and quantised, but plain red stays within a few levels of itself
        np.testing.assert_allclose(np.asarray(small).reshape(-1, 3).mean(0), RED, atol=4)


def test_no_thumbnails_are_kept_when_none_are_wanted(tmp_path, images, net):
    gallery = build(images, tmp_path / "gallery", net, thumbnail_side=0).gallery
    assert {entry.thumbnail for entry in gallery.entries} == {b""}


def test_a_broken_image_is_reported_and_its_neighbours_stay(tmp_path, images, net):
    (images / "cold" / "broken.jpg").write_bytes(b"not a picture")
    (images / "warm" / "cut.png").write_bytes((images / "warm" / "red.png").read_bytes()[:50])
    report = build(images, tmp_path / "gallery", net)
    assert report.added == len(report.gallery) == 4
    assert [id for id, _ in report.unreadable] == ["cold/broken.jpg", "warm/cut.png"]
    assert "is not an image" in report.unreadable[0][1]


def test_an_image_without_an_embedding_to_compare_is_reported_too(tmp_path, net):
    black = plain((0, 0, 0))
    with torch.no_grad():
        net.module.first.weight.zero_()
        net.module.first.weight[0, 0] = 1.0
        net.module.first.bias = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))  # black's (0 − 0.5) / 0.25 becomes 0
    report = build_from([("red", "", plain(RED)), ("black", "", black)], tmp_path / "gallery", net)
    assert ids(report.gallery) == ["red"]
    assert report.unreadable[0][0] == "black"
    assert "all zero" in report.unreadable[0][1]


def test_a_folder_without_a_readable_image_is_refused_with_the_reason(tmp_path, net):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"<html>")
    with pytest.raises(GalleryError, match=r"none of 1 images could be used; a\.jpg: .*HTML"):
        build(tmp_path / "pictures", tmp_path / "gallery", net)
    assert not (tmp_path / "gallery").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [(Path("nowhere"), "no such file or folder: nowhere"), ([], "no paths were given")],
)
def test_no_folder_is_an_error(tmp_path, net, given, says):
    with pytest.raises(GalleryError, match=says):
        build(given, tmp_path / "gallery", net)


def test_a_folder_without_images_is_an_error_that_says_what_was_looked_for(tmp_path, net):
    with pytest.raises(GalleryError, match=r"no images in .*; looked for \.bmp, .*\.webp"):
        build(tmp_path, tmp_path / "gallery", net)


def test_the_gallery_may_lie_below_its_own_images(tmp_path, images, net):
    for _ in range(2):
        assert build(images, images / "gallery", net).added == 4


def test_several_folders_and_files_share_the_folder_that_holds_them_all(tmp_path, images, net):
    given = [images / "warm", images / "cold" / "blue.bmp", images / "warm" / "red.png"]
    gallery = build(given, tmp_path / "gallery", net).gallery
    assert ids(gallery) == ["cold/blue.bmp", "warm/dark/Brown.PNG", "warm/red.png"]


def test_a_relative_folder_gives_the_same_names(tmp_path, images, net, monkeypatch):
    monkeypatch.chdir(images / "cold")
    assert ids(build(Path("../warm"), tmp_path / "gallery", net).gallery) == ["dark/Brown.PNG", "red.png"]


def test_paths_to_one_folder_spelt_in_two_ways_meet(tmp_path, images, net, monkeypatch):
    monkeypatch.chdir(images / "cold")
    given = [Path("../warm/red.png"), images / "warm" / "dark", Path("../warm/../warm")]
    assert ids(build(given, tmp_path / "gallery", net).gallery) == ["dark/Brown.PNG", "red.png"]


@pytest.mark.parametrize("opening", ["", "\ufeff"])  # Excel writes a byte-order mark
def test_labels_can_come_from_a_table(tmp_path, images, net, opening):
    table = tmp_path / "labels.csv"
    rows = 'cold/blue.bmp,7,sky\ngrass.tiff,8,\nwarm/dark/Brown.PNG,9,"earth, dry"\nwarm/red.png,1,fire\nother,0,x\n'
    table.write_text(f"{opening}file,class,label\n{rows}", encoding="utf-8")
    gallery = build(images, tmp_path / "gallery", net, label_from=table).gallery
    assert [entry.label for entry in gallery.entries] == ["sky", "", "earth, dry", "fire"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\ncold/blue.bmp,sky\n", r"no label for 3 of 4 images, the first is 'grass\.tiff'"),
        ("path,label\na,b\n", "needs a first line that names the columns file and label"),
        ("", "needs a first line"),
    ],
)
def test_a_table_that_leaves_images_without_a_label_is_refused(tmp_path, images, net, text, says):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(GalleryError, match=says):
        build(images, tmp_path / "gallery", net, label_from=tmp_path / "labels.csv")
    assert net.module.batches == []  # noticed before the work begins


def test_progress_counts_all_images_and_batches_are_as_asked(tmp_path, images, net):
    (images / "a.jpg").write_bytes(b"broken")
    steps = []
    build(images, tmp_path / "gallery", net, batch=3, on_step=lambda done, total: steps.append((done, total)))
    assert net.module.batches == [3, 1]
    assert steps == [(0, 5), (4, 5), (5, 5)]


def test_the_size_of_the_batch_changes_nothing(tmp_path, net):
    noise = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)
    named = [(f"p{n}", "noise", Image.fromarray(image)) for n, image in enumerate(noise)]
    one, many = (build_from(named, tmp_path / str(batch), net, batch=batch).gallery for batch in (1, 16))
    query = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    for a, b in zip(one.query(query, k=7), many.query(query, k=7), strict=True):
        assert [n.id for n in a] == [n.id for n in b]
        # float32 sums may be taken in another order in a larger batch
        np.testing.assert_allclose([n.distance for n in a], [n.distance for n in b], atol=1e-6)


def test_images_can_come_one_by_one_and_keep_their_order(tmp_path, net):
    report = build_from(((n, n.upper(), plain(c)) for n, c in [("z", RED), ("a", BLUE)]), tmp_path / "gallery", net)
    assert [(entry.id, entry.label) for entry in report.gallery.entries] == [("z", "Z"), ("a", "A")]


@pytest.mark.parametrize("options", [{"batch": 0}, {"thumbnail_side": -1}])
def test_sizes_below_what_is_possible_are_refused(tmp_path, net, options):
    with pytest.raises(GalleryError, match="at least"):
        build_from([("a", "", plain(RED))], tmp_path / "gallery", net, **options)
