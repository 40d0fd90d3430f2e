"""``convlens archive``: what goes in, what is refused, and when nothing need be built."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from convlens.cli.main import build
from convlens.errors import ConvLensError, ModelError, RequestError, ServerError

SMALL = "torchvision:squeezenet1_1:untrained?size=64&resize=64"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if isinstance(result.exception, ConvLensError):
        raise result.exception
    return result


def section(archive: Path) -> dict[str, object]:
    with zipfile.ZipFile(archive) as opened:
        return dict(yaml.safe_load(opened.read("model-config.yaml"))["convlens"])


def test_a_second_build_of_the_same_things_is_skipped(tmp_path: Path) -> None:
    arguments = ("archive", "--name", "small", "--model", SMALL, "--store", tmp_path)
    assert convlens(*arguments).exit_code == 0
    written = (tmp_path / "small.mar").stat().st_mtime_ns
    assert "up to date" in convlens(*arguments).output
    assert (tmp_path / "small.mar").stat().st_mtime_ns == written
    convlens(*arguments, "--batch-size", 4)
    assert (tmp_path / "small.mar").stat().st_mtime_ns > written


def test_a_network_without_relus_is_not_asked_for_guided_backprop_by_default(tmp_path: Path) -> None:
    model = "torchvision:mobilenet_v3_small:untrained?size=64&resize=64"
    convlens("archive", "--name", "hard", "--model", model, "--store", tmp_path)
    convlens("archive", "--name", "relu", "--model", SMALL, "--store", tmp_path)
    assert section(tmp_path / "hard.mar")["methods"] == ["saliency", "occlusion"]
    assert section(tmp_path / "relu.mar")["methods"] == ["saliency", "guided_backprop", "occlusion"]


def test_the_graph_for_sweeps_travels_along(tmp_path: Path) -> None:
    convlens("export", "scores", "--model", SMALL, "-o", tmp_path / "scores.onnx")
    convlens("archive", "--model", SMALL, "--scores", tmp_path / "scores.onnx", "--store", tmp_path)
    with zipfile.ZipFile(tmp_path / "convlens.mar") as opened:
        assert opened.read("model/scores.onnx") == (tmp_path / "scores.onnx").read_bytes()
    assert section(tmp_path / "convlens.mar")["scores"] == "model/scores.onnx"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--name", "a b"), ServerError, "letters"),
        (("--methods", "saliency,occlude"), RequestError, "did you mean occlusion"),
        (("--gallery", "no-such-gallery"), RequestError, "no-such-gallery"),
        (("--scores", "no-such.onnx"), ModelError, "no-such.onnx"),
        (("--batch-size", "0"), ServerError, "batch_size"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], error: type[ConvLensError], message: str
) -> None:
    with pytest.raises(error, match=message):
        convlens("archive", "--model", SMALL, "--store", tmp_path / "store", *arguments)
    assert not list(tmp_path.rglob("*.mar"))
