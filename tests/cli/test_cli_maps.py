"""``project`` and ``neighbours`` as a user meets them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from typer.testing import CliRunner, Result

from convlens import image, load
from convlens.cli.main import build
from convlens.errors import GalleryError, RequestError
from convlens.gallery import build_from

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
HOSTILE = "</script><b>cat</b> katze ñ 猫"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen crops of three photographs."""
    made = tmp_path_factory.mktemp("pictures")
    for n in range(18):
        name = ("chelsea.png", "coffee.png", "rocket.jpg")[n % 3]
        with Image.open(PHOTOGRAPHS / name) as picture:
            left, top = 8 * n, 4 * n
            picture.convert("RGB").crop((left, top, left + 220, top + 200)).save(made / f"{name[:-4]}-{n:02}.png")
    return made


@pytest.fixture(scope="module")
def gallery(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gallery") / "gallery"
    labels = {"chelsea": HOSTILE, "coffee": "coffee", "rocket": "rocket"}
    named = [(path.name, labels[path.name.split("-")[0]], image.read(path)) for path in sorted(pictures.iterdir())]
    build_from(named, made, load(device="cpu"))
    return made


def data_of(page: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[0])


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_gallery_becomes_a_map(gallery: Path, tmp_path: Path, method: str) -> None:
    said = convlens("project", gallery, "--method", method, "--perplexity", 4, "-o", tmp_path / "map").output
    page = (tmp_path / "map" / "map.html").read_text(encoding="utf-8")
    with (tmp_path / "map" / "coordinates.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    data = data_of(page)
    assert data["names"] == [row["id"] for row in rows] and len(rows) == 18
    np.testing.assert_allclose(data["points"], [(float(row["x"]), float(row["y"])) for row in rows], rtol=1e-4)
    assert [data["labels"][n] for n in data["label"]] == [row["label"] for row in rows]
    manifest = json.loads((tmp_path / "map" / "manifest.json").read_text())
    assert f"trustworthiness: {manifest['trustworthiness']:.3f}" in said
    assert f"<dd><bdi>{manifest['trustworthiness']:.3f}</bdi></dd>" in page
    assert "<b>cat" not in page and HOSTILE in data["labels"]
    assert re.search(r"(?:src|href)=.(?!data:)", page) is None  # it loads nothing
    assert len(data["sheet"]["which"]) == 18 and data["sheet"]["uri"].startswith("data:image/jpeg;base64,/9j/")
    with Image.open(tmp_path / "map" / "map.png") as drawn:
        assert np.asarray(drawn).std() > 10


def test_a_lowered_perplexity_is_said_wherever_the_map_is_shown(gallery: Path, tmp_path: Path) -> None:
    said = convlens("project", gallery, "-o", tmp_path / "map").output  # 18 images, and 30 by default
    assert "perplexity: 5.67, lowered from 30 because 18 images allow no more" in said
    assert "lowered from 30 because 18 images" in (tmp_path / "map" / "map.html").read_text(encoding="utf-8")
    options = json.loads((tmp_path / "map" / "manifest.json").read_text())["options"]
    assert options["perplexity"] == pytest.approx(17 / 3) and options["perplexity_asked_for"] == 30


def test_a_gallery_without_thumbnails_is_drawn_by_dots(gallery: Path, pictures: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    named = [(path.name, "", image.read(path)) for path in sorted(pictures.iterdir())[:6]]
    build_from(named, bare, load(device="cpu"), thumbnail_side=0)
    said = convlens("project", bare, "--method", "pca", "-o", tmp_path / "map").output
    assert "neighbours of one label" not in said
    assert "sheet" not in data_of((tmp_path / "map" / "map.html").read_text(encoding="utf-8"))
    with pytest.raises(RequestError, match="keeps no thumbnails; name the folder of its images"):
        convlens("neighbours", PHOTOGRAPHS / "chelsea.png", "--gallery", bare, "-o", tmp_path / "near.png", "-k", 3)
    near = ("neighbours", PHOTOGRAPHS / "chelsea.png", "--gallery", bare, "-o", tmp_path / "near.png", "-k", 3)
    convlens(*near, "--pictures", pictures)
    assert (tmp_path / "near.png").is_file()


@pytest.mark.parametrize("source", ["thumbnails", "pictures"])
def test_a_picture_of_the_gallery_is_not_its_own_neighbour(
    gallery: Path, pictures: Path, tmp_path: Path, source: str
) -> None:
    folder = ("--pictures", pictures) if source == "pictures" else ()
    query = pictures / "coffee-04.png"
    near = ("neighbours", query, "--gallery", gallery, "-o", tmp_path / "near.png", "-k", 4, *folder)
    told = convlens(*near).output
    assert "0.0000" not in told
    assert told.count("coffee ") >= 4
    with_itself = convlens(*near, "--keep-self").output
    assert re.search(r"coffee +│ +0\.0000 │ coffee +│ +0 │", with_itself)
    with Image.open(tmp_path / "near.png") as drawn:
        assert drawn.width > 600


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--perplexity", "0"), RequestError, "use 1 or more"),
        (("--method", "pca", "-o", "OTHER"), RequestError, "holds other things"),
    ],
)
def test_a_map_that_cannot_be_made_is_said(
    gallery: Path, tmp_path: Path, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years")
    given = [tmp_path / "other" if one == "OTHER" else one for one in arguments]
    with pytest.raises(error, match=message):
        convlens("project", gallery, "-o", tmp_path / "map", *given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_other_weights_a_missing_file_and_another_ending(gallery: Path, pictures: Path, tmp_path: Path) -> None:
    common = ("neighbours", pictures / "coffee-04.png", "--gallery", gallery)
    with pytest.raises(GalleryError, match="made by packaged:efficientnet_lite0 with weights"):
        convlens(*common, "-o", tmp_path / "near.png", "--model", "torchvision:squeezenet1_1:untrained")
    with pytest.raises(RequestError, match="give the folder it was built from"):
        convlens(*common, "-o", tmp_path / "near.png", "--pictures", tmp_path)
    with pytest.raises(RequestError, match=r"should end in \.png"):
        convlens(*common, "-o", tmp_path / "near.jpg")
    assert not list(tmp_path.iterdir())


def test_the_table_of_neighbours_is_what_a_query_of_the_gallery_finds(
    gallery: Path, pictures: Path, tmp_path: Path
) -> None:
    query, table = pictures / "chelsea-00.png", tmp_path / "tables" / "neighbours.csv"
    convlens("neighbours", query, "--gallery", gallery, "-k", 3, "--table", table, "-o", tmp_path / "figure.png")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["space"], row["rank"]) for row in rows] == [
        (space, str(rank)) for space in ("features", "pixels") for rank in (1, 2, 3)
    ]
    assert {row["query"] for row in rows} == {str(query)}
    found = json.loads(convlens("gallery", "query", gallery, query, "-k", 4, "--json").stdout)["neighbours"][1:]
    # The first is the query itself, which the table leaves out.
    np.testing.assert_allclose(
        [float(row["distance"]) for row in rows[:3]], [near["distance"] for near in found], rtol=1e-5
    )
