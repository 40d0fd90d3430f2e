"""``receptive-field``, ``filters`` and ``activations`` as a user meets them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from convlens import image, load
from convlens.cli.main import build
from convlens.errors import ConvLensError, RequestError

CHELSEA = Path(skimage.__file__).parent / "data" / "chelsea.png"
ALEXNET = "torchvision:alexnet:untrained"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if isinstance(result.exception, ConvLensError):
        raise result.exception
    return result


def test_the_table_lists_every_layer_with_what_is_known_of_it() -> None:
    lines = convlens("receptive-field", "--model", ALEXNET).output.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    rows = {row[0]: row[1:] for row in cells}
    # AlexNet's own numbers: 11 pixels by 4 padded by 2; behind the last pooling 195 pixels by 32.
    assert rows["features.0"] == ["Conv2d", "55×55", "11×11", "4×4", "-2, -2"]
    assert rows["features.12"] == ["MaxPool2d", "6×6", "195×195", "32×32", "-66, -66"]
    assert rows["classifier.6"] == ["Linear", "1×1", "224×224", "–", "0, 0"]
    assert len(rows) == len(list(load(ALEXNET, device="cpu").module.modules())) - 1


def test_one_unit_is_described_by_its_pixels() -> None:
    told = convlens("receptive-field", "--model", ALEXNET, "--layer", "features.2", "--at", "0,26").output
    assert "rows -2..16, columns 206..224" in told
    assert "rows 0..16, columns 206..223, of 224×224 pixels" in told
    middle = convlens("receptive-field", "--model", ALEXNET, "--layer", "features.2").output
    assert "unit at row 13, column 13" in middle


def test_another_image_size_has_another_grid() -> None:
    told = convlens("receptive-field", "--model", ALEXNET, "--layer", "features.0", "--size", 103).output
    assert "25×25" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layer", "feature.5"), "did you mean features.5"),
        (("--at", "1,1"), "give --layer too"),
        (("--layer", "features.5", "--at", "13,0"), r"rows 0\.\.12 and columns 0\.\.12"),
        (("--layer", "features.5", "--at", "1"), "ROW,COLUMN"),
        (("--layer", "features.5", "--at", "-1,²"), "ROW,COLUMN"),
    ],
)
def test_bad_arguments_of_receptive_field_are_refused_with_what_is_possible(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        convlens("receptive-field", "--model", ALEXNET, *arguments)


def test_several_models_share_a_figure(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "new" / "two.png"
    convlens("filters", "--model", ALEXNET, "-o", one)
    message = convlens("filters", "--model", ALEXNET, "--model", "torchvision:resnet18:untrained", "-o", two).output
    assert f"{ALEXNET} features.0: 64×3×11×11" in message
    assert "torchvision:resnet18:untrained conv1: 64×3×7×7" in message
    left, both = np.asarray(Image.open(one)), np.asarray(Image.open(two))
    assert both.shape[1] > 1.9 * left.shape[1]
    height = min(left.shape[0], both.shape[0]) - 60  # without the captions, whose place may differ
    np.testing.assert_array_equal(both[:height, : left.shape[1] - 16], left[:height, :-16])


def test_a_figure_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    for arguments, message in (
        (("-o", tmp_path / "filters.jpg"), "should end in .png"),
        (("--layer", "features.1", "-o", tmp_path / "filters.png"), "is a ReLU"),
    ):
        with pytest.raises(RequestError, match=message):
            convlens("filters", "--model", ALEXNET, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_maps_written_are_the_layer_s(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = convlens("activations", CHELSEA, "--layer", "blocks.1.0.conv_dw", "--channel", 7, "-o", out)
    assert result.exit_code == 0, result.output
    pictures = {"view", "channels", "strongest", "channel-0007", "overlay-0007"}
    others = {"maps_CHW.npy", "ranking.csv", "manifest.json"}
    assert {path.name for path in out.iterdir()} == {f"{name}.png" for name in pictures} | others
    classifier = load(device="cpu")
    kept: list[torch.Tensor] = []
    # The ReLU6 behind works in place.
    classifier.module.get_submodule("blocks.1.0.conv_dw").register_forward_hook(
        lambda *given: kept.append(given[2].clone())
    )
    x_CHW = image.prepare(image.read(CHELSEA), classifier.spec).x_CHW
    with torch.no_grad():
        classifier.module(torch.from_numpy(x_CHW)[None])
    maps_CHW = np.load(out / "maps_CHW.npy", allow_pickle=False)
    assert maps_CHW.shape == (96, 56, 56)
    # The same float32 arithmetic, but for threads that may add in another order.
    np.testing.assert_allclose(maps_CHW, kept[0][0].numpy(), rtol=1e-4, atol=1e-5)
    rows = list(csv.DictReader((out / "ranking.csv").open(encoding="utf-8")))
    strongest = np.sort(maps_CHW.max(axis=(1, 2)))[::-1]
    np.testing.assert_allclose([float(row["largest"]) for row in rows], strongest, rtol=1e-6)
    first = rows[0]
    assert maps_CHW[int(first["channel"]), int(first["row"]), int(first["column"])] == pytest.approx(strongest[0])
    assert json.loads((out / "manifest.json").read_text())["channel"] == 7


def test_the_strongest_channel_is_the_default_and_an_old_result_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for layer in ("blocks.1.0.conv_dw", "conv_stem"):
        convlens("activations", CHELSEA, "--layer", layer, "-o", out)
    maps_CHW = np.load(out / "maps_CHW.npy", allow_pickle=False)
    strongest = int(maps_CHW.max(axis=(1, 2)).argmax())
    assert sorted(path.name for path in out.glob("channel-*")) == [f"channel-{strongest:04}.png"]
    view = np.asarray(Image.open(out / "view.png"))
    classifier = load(device="cpu")
    np.testing.assert_array_equal(view, image.prepare(image.read(CHELSEA), classifier.spec).view_HWC)
    assert Image.open(out / f"overlay-{strongest:04}.png").size == (224, 224)


def test_bad_input_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no channel 32; there are 0\.\.31"):
        convlens("activations", CHELSEA, "--layer", "conv_stem", "--channel", 32, "-o", tmp_path / "out")
    with pytest.raises(RequestError, match="did you mean conv_stem"):
        convlens("activations", CHELSEA, "--layer", "conv_sten", "-o", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(RequestError, match="holds other things"):
        convlens("activations", CHELSEA, "--layer", "conv_stem", "-o", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"
