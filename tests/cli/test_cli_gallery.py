"""``convlens gallery`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import skimage
from PIL import Image
from typer.testing import CliRunner, Result

from convlens.cli.main import build
from convlens.errors import GalleryError, RequestError

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def crops(folder: Path, names: tuple[str, ...], count: int) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        with Image.open(next(PHOTOGRAPHS.glob(f"{name}.*"))) as picture:
            for n in range(count):
                left, top = 16 * n, 9 * n
                picture.convert("RGB").crop((left, top, left + 220, top + 200)).save(folder / name / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    crops(folder, ("chelsea", "coffee"), 4)
    (folder / "broken.jpg").write_bytes(b"no picture")
    out = folder.parent / "gallery"
    told = convlens("gallery", "build", folder, "-o", out).output
    assert "8 images in" in told and "skipped broken.jpg" in told and "index: exact" in told
    return out


def test_a_picture_s_nearest_are_told_as_a_table_or_as_json(gallery: Path) -> None:
    table = convlens("gallery", "query", gallery, PHOTOGRAPHS / "coffee.png", "-k", 3).output
    assert table.count("coffee/") == 3
    lines = convlens(
        "gallery", "query", gallery, PHOTOGRAPHS / "coffee.png", PHOTOGRAPHS / "chelsea.png", "--json"
    ).output
    found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    assert [Path(one["picture"]).name for one in found] == ["coffee.png", "chelsea.png"]
    assert [one["neighbours"][0]["label"] for one in found] == ["coffee", "chelsea"]
    distances = [near["distance"] for near in found[0]["neighbours"]]
    assert distances == sorted(distances) and len(distances) == 5


def test_info_tells_what_there_is_and_whether_there_are_hubs(gallery: Path) -> None:
    facts = json.loads(convlens("gallery", "info", gallery, "--json").output)
    assert (facts["pictures"], facts["dimensions"], facts["labels"]) == (8, 1280, 2)
    assert facts["index"]["kind"] == "exact" and facts["hubness"]["k"] == 5
    table = convlens("gallery", "info", gallery).output
    assert "scaled to length 1" in table and "nearest of" in table


def test_pictures_can_be_added(gallery: Path, tmp_path: Path) -> None:
    more = crops(tmp_path / "more", ("rocket",), 2)
    assert "2 images added, 10 in" in convlens("gallery", "add", gallery, more).output
    with pytest.raises(GalleryError, match="already"):
        convlens("gallery", "add", gallery, more)
    assert "2 images added, 10 in" in convlens("gallery", "add", gallery, more, "--replace").output


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("query", "GALLERY", PHOTOGRAPHS / "coffee.png", "-k", 99), RequestError, r"use 1\.\."),
        (("query", "GALLERY", PHOTOGRAPHS / "coffee.png", "--model", "torchvision:squeezenet1_1:untrained"),
         GalleryError, "made by packaged:efficientnet_lite0"),
        (("info", "nowhere"), GalleryError, "make one with `convlens gallery build`"),
        (("build", "nowhere", "-o", "new"), RequestError, "no such file or folder"),
        (("build", "PICTURES", "-o", "new", "--index", "hnsw"), GalleryError, "needs 1000 images or more, not 2"),
    ],
)  # fmt: skip
def test_what_will_not_do_is_said(
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"GALLERY": gallery, "PICTURES": crops(tmp_path / "pictures", ("coffee",), 2)}
    with pytest.raises(error, match=message):
        convlens("gallery", *(places.get(one, one) if isinstance(one, str) else one for one in arguments))
    assert not (tmp_path / "new").exists()
