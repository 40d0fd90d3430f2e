"""``convlens patches`` as a user meets it."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from typer.testing import CliRunner, Result

from convlens.cli.main import build
from convlens.errors import ConvLensError, RequestError

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        (made / f"<b>{name}").write_bytes((PHOTOGRAPHS / name).read_bytes())  # a hostile name
    (made / "broken.jpg").write_bytes(b"no picture")
    return made


class Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.bold = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.bold += tag == "b"
        if tag == "img":
            self.found.append(dict(attrs))


def test_a_layer_becomes_a_table_sheets_and_a_page(folder: Path, tmp_path: Path) -> None:
    result = convlens("patches", folder, "--layer", "conv_stem", "-k", 2, "--channels", "0,3-5", "-o", tmp_path / "out")
    assert "8 patches of 4 channels from 3 images" in result.output
    with (tmp_path / "out" / "patches.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["channel"], row["rank"]) for row in rows] == [(c, r) for c in "0345" for r in "12"]
    for row in rows:  # a stem of 3×3 by 2: 3 pixels a side, every 2, and padded behind the last row and column
        assert int(row["top"]) == 2 * int(row["y"]) and int(row["bottom"]) == int(row["top"]) + 3
    page = Images()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert [image["src"] for image in page.found] == [f"channels/{channel:04}.jpg" for channel in (0, 3, 4, 5)]
    assert page.bold == 0
    for image in page.found:
        with Image.open(tmp_path / "out" / str(image["src"])) as sheet:
            assert sheet.size == (int(image["width"] or 0), int(image["height"] or 0))
            assert np.asarray(sheet).std() > 5
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pictures"] == 3 and manifest["unreadable"][0][0] == "broken.jpg"


@pytest.mark.slow
def test_without_backprop_only_crops_are_drawn(folder: Path, tmp_path: Path) -> None:
    common = ("patches", folder, "--layer", "conv_stem", "-k", 1, "--channels", "1", "-o", tmp_path / "out")
    convlens(*common, "--backprop", "none")
    with Image.open(tmp_path / "out" / "channels" / "0001.jpg") as sheet:
        alone = sheet.height
    convlens(*common)  # what a run made, another may replace
    with Image.open(tmp_path / "out" / "channels" / "0001.jpg") as sheet:
        assert sheet.height - alone >= sheet.width  # a second square under the first, above one caption


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layer", "conv_stm"), "did you mean conv_stem"),
        (("--layer", "conv_stem", "--channels", "3-1"), "smaller number comes first"),
        (("--layer", "conv_stem", "--channels", "x"), "should read like"),
        (("--layer", "conv_stem", "--channels", "32"), r"there are 0\.\.31"),
        (("--layer", "conv_stem", "-k", "4"), "3 of 4 images could be read"),
        (("--layer", "conv_stem", "--model", "torchvision:convnext_tiny:untrained"), "no layer"),
    ],
)
def test_what_will_not_do_is_said_and_nothing_is_written(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        convlens("patches", folder, "-o", tmp_path / "out", *arguments)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_and_a_folder_with_other_things_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="no images in"):
        convlens("patches", tmp_path / "empty", "--layer", "conv_stem", "-o", tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="holds other things"):
        convlens("patches", folder, "--layer", "conv_stem", "-o", tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_a_network_that_guided_backprop_is_not_for_is_offered_the_gradient(folder: Path, tmp_path: Path) -> None:
    common = ("patches", folder, "--layer", "features.1.0", "-k", 1, "--channels", "0")
    model = ("--model", "torchvision:efficientnet_b0:untrained")
    with pytest.raises(ConvLensError, match=r"(?i)silu"):
        convlens(*common, *model, "-o", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    convlens(*common, *model, "-o", tmp_path / "out", "--backprop", "saliency")
    assert (tmp_path / "out" / "manifest.json").is_file()
