"""Options that take lists: with commas, repeated, or both, in every command alike."""

from __future__ import annotations

import json
from pathlib import Path

import evaluations
import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner, Result

from convlens.cli.main import COMMANDS, build
from convlens.cli.options import job_settings, method_params, parse_channels, parse_methods, parse_names
from convlens.errors import ConvLensError, RequestError
from convlens.models import load

SMALL = "torchvision:squeezenet1_1:untrained?size=64&resize=64"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if isinstance(result.exception, ConvLensError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_that_takes_a_list_may_be_repeated(command: str) -> None:
    options = getattr(get_command(build([command])), "commands", {})[command].params
    lists = [option for option in options if "comma-separated" in str(getattr(option, "help", ""))]
    lists += [option for option in options if option.name in ("methods", "layers", "channels")]
    assert all(option.multiple for option in lists), [option.name for option in lists if not option.multiple]
    assert all("may be repeated" in str(getattr(option, "help", "")) for option in lists)


@pytest.mark.parametrize("values", [["a,b,c"], ["a", "b", "c"], ["a, b", "", "c,"]])
def test_names_add_up_however_they_are_given(values: list[str]) -> None:
    assert parse_names(values) == ["a", "b", "c"]


def test_channels_add_up() -> None:
    assert parse_channels(["0,3-5", "9"]) == [0, 3, 4, 5, 9]
    assert parse_channels([]) == []
    with pytest.raises(RequestError, match="--channels 0,5-3: 5-3 is no range"):
        parse_channels(["0", "5-3"])


def test_a_method_is_run_once_however_often_it_is_named() -> None:
    assert parse_methods(["saliency", "occlusion,saliency"]) == ["saliency", "occlusion"]
    assert parse_methods(["all", "neighbours"]) == [*parse_methods(["all"]), "neighbours"]
    with pytest.raises(RequestError, match="did you mean occlusion"):
        parse_methods(["saliency", "occlude"])


def test_a_setting_is_given_once() -> None:
    with pytest.raises(RequestError, match=r"jitter=3: jitter is set to 2 already"):
        job_settings(["jitter=2", "jitter=3"])
    with pytest.raises(RequestError, match=r"window is set to 8 already"):
        method_params(["occlusion"], ["occlusion.window=8", "occlusion.window=16"])
    assert job_settings(["layers=[1, 2]", "blur-every=2"]) == {"layers": [1, 2], "blur_every": 2}


def test_repeated_methods_are_all_explained(picture: Path, tmp_path: Path) -> None:
    convlens(
        "explain", picture, "--methods", "saliency", "--methods", "grad_cam", "--model", SMALL, "-o", tmp_path / "o"
    )
    assert {path.stem for path in (tmp_path / "o" / "picture").glob("*.npz")} == {"saliency", "grad_cam"}


def test_repeated_layers_and_channels_are_all_taken(picture: Path, tmp_path: Path) -> None:
    common = ("--model", SMALL, "--steps", "1")
    layers = ("--layers", "features.0", "--layers", "features.3,features.4")
    convlens("invert", picture, *layers, *common, "-o", tmp_path / "inversion")
    channels = ("--layer", "features.3", "--channels", "0", "--channels", "2-3")
    convlens("ascent", *channels, *common, "-o", tmp_path / "ascent")
    jobs = [json.loads((tmp_path / name / "manifest.json").read_text())["job"] for name in ("inversion", "ascent")]
    assert jobs[0]["layers"] == ["features.0", "features.3", "features.4"]
    assert jobs[1]["channels"] == [0, 2, 3]


def test_layers_that_a_network_chooses_are_said(picture: Path, tmp_path: Path) -> None:
    said = convlens("dream", picture, "--octaves", 1, "--steps", 1, "--model", SMALL, "-o", tmp_path / "dream")
    assert "dream: layers: features.7" in said.output


def test_recommended_methods_are_explained_with_the_options_they_were_evaluated_with(
    tmp_path: Path, picture: Path
) -> None:
    weights_sha256 = load(SMALL, device="cpu").spec.weights_sha256
    settings = evaluations.settings(weights_sha256)
    settings["methods"]["occlusion"] = {"window": 48, "stride": 24}
    verdict = evaluations.verdict(("occlusion", "saliency"))
    folder = evaluations.write_evaluation(tmp_path / "e", weights_sha256, settings=settings, verdict=verdict)
    recommended = ("--methods", "recommended", "--evaluation", folder, "--set", "occlusion.stride=32")
    convlens("explain", picture, "--model", SMALL, "-o", tmp_path / "out", *recommended)
    reply = json.loads((tmp_path / "out" / "picture" / "reply.json").read_text())
    used = {each["method"]: each["options"] for each in reply["explanations"]}
    assert list(used) == ["occlusion", "saliency"]
    assert (used["occlusion"]["window"], used["occlusion"]["stride"]) == (48, 32)


def test_an_evaluation_of_other_weights_explains_nothing(tmp_path: Path, picture: Path) -> None:
    folder = evaluations.write_evaluation(tmp_path / "e", "0" * 64)
    recommended = ("--methods", "recommended", "--evaluation", folder)
    with pytest.raises(RequestError, match=f"{'0' * 64}, but the model has weights [0-9a-f]{{64}}"):
        convlens("explain", picture, "--model", SMALL, "-o", tmp_path / "out", *recommended)
    assert not (tmp_path / "out").exists()
