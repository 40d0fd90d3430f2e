"""``convlens archive``: what goes in, what is refused, and when nothing need be built."""

from __future__ import annotations

import zipfile
from pathlib import Path

import evaluations
import pytest
import yaml
from typer.testing import CliRunner, Result

from convlens.cli.main import build
from convlens.errors import ConvLensError, ModelError, RequestError, ServerError
from convlens.models import load

SMALL = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
NETWORK = """
import torch
from torch import nn


def relu():
    return factory(nn.ReLU)


def silu():
    return factory(nn.SiLU)


def factory(activation):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, stride=2), activation(), nn.Conv2d(8, 8, 3), activation()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""


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
    arguments = ("archive", "--name", "small", "--model", SMALL, "--store", tmp_path, "--graphs", "none")
    assert convlens(*arguments).exit_code == 0
    written = (tmp_path / "small.mar").stat().st_mtime_ns
    assert "up to date" in convlens(*arguments).output
    assert (tmp_path / "small.mar").stat().st_mtime_ns == written
    convlens(*arguments, "--batch-size", 4)
    assert (tmp_path / "small.mar").stat().st_mtime_ns > written


def test_a_network_without_relus_is_not_asked_for_guided_backprop_by_default(tmp_path: Path) -> None:
    model = "torchvision:mobilenet_v3_small:untrained?size=64&resize=64"
    convlens("archive", "--name", "hard", "--model", model, "--store", tmp_path, "--graphs", "none")
    convlens("archive", "--name", "relu", "--model", SMALL, "--store", tmp_path, "--graphs", "none")
    assert section(tmp_path / "hard.mar")["methods"] == ["saliency", "occlusion"]
    assert section(tmp_path / "relu.mar")["methods"] == ["saliency", "guided_backprop", "occlusion"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where graphs are cached, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def network(elsewhere: Path) -> str:
    """With ReLUs; small, because its graphs are exported."""
    (elsewhere / "network.py").write_text(NETWORK)
    return f"file:{elsewhere / 'network.py'}:relu?size=32&resize=32"


def names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


@pytest.mark.slow
def test_graphs_for_sweeps_travel_along_by_default_and_are_exported_once(elsewhere: Path, network: str) -> None:
    arguments = ("archive", "--model", network, "--store", elsewhere)
    convlens(*arguments)
    assert {"graphs/scores.onnx", "graphs/occlusion.onnx", "model/weights.safetensors"} <= names(
        elsewhere / "convlens.mar"
    )
    assert section(elsewhere / "convlens.mar")["graphs"] == "graphs"
    exported = written_graphs(elsewhere / "cache")
    assert "up to date" in convlens(*arguments).output
    assert written_graphs(elsewhere / "cache") == exported != {}


def written_graphs(folder: Path) -> dict[Path, int]:
    """Each one's time."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.onnx")}


@pytest.mark.slow
def test_an_archive_of_graphs_holds_no_network(elsewhere: Path, network: str) -> None:
    convlens("archive", "--runtime", "onnx", "--model", network, "--store", elsewhere)
    found = names(elsewhere / "convlens.mar")
    kinds = ("embedding", "saliency", "guided_backprop", "deconvnet")
    assert {f"graphs/{kind}.onnx" for kind in kinds} <= found
    assert "onnx_handler.py" in found
    assert not [name for name in found if name.endswith((".safetensors", "convlens_handler.py"))]
    assert section(elsewhere / "convlens.mar")["methods"] == ["saliency", "guided_backprop", "occlusion"]


@pytest.mark.slow
def test_a_network_without_relus_makes_an_archive_of_graphs_without_guided_backprop(
    elsewhere: Path, network: str
) -> None:
    model = network.replace(":relu?", ":silu?")
    convlens("archive", "--runtime", "onnx", "--model", model, "--store", elsewhere)
    assert "graphs/guided_backprop.onnx" not in names(elsewhere / "convlens.mar")
    assert section(elsewhere / "convlens.mar")["methods"] == ["saliency", "occlusion"]


def test_graphs_of_another_model_are_refused_with_both_hashes(elsewhere: Path, network: str) -> None:
    convlens("export", "scores", "--model", network, "-o", elsewhere / "scores.onnx")
    other = "torchvision:squeezenet1_1:untrained?size=32&resize=32"
    with pytest.raises(ModelError, match=r"exported from weights [0-9a-f]{64} .* in use are [0-9a-f]{64}"):
        convlens("archive", "--model", other, "--graphs", elsewhere, "--store", elsewhere / "store")
    assert not list(elsewhere.rglob("*.mar"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--name", "a b", "--graphs", "none"), ServerError, "letters"),
        (("--methods", "saliency,occlude"), RequestError, "did you mean occlusion"),
        (("--gallery", "no-such-gallery"), RequestError, "no-such-gallery"),
        (("--graphs", "no-such-folder"), RequestError, "no-such-folder is no folder"),
        (("--runtime", "onnx", "--graphs", "none"), RequestError, "consists of graphs"),
        (("--batch-size", "0", "--graphs", "none"), ServerError, "batch_size"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], error: type[ConvLensError], message: str
) -> None:
    with pytest.raises(error, match=message):
        convlens("archive", "--model", SMALL, "--store", tmp_path / "store", *arguments)
    assert not list(tmp_path.rglob("*.mar"))


# ---- recommended methods


@pytest.fixture(scope="module")
def weights_sha256() -> str:
    return load(SMALL, device="cpu").spec.weights_sha256


def test_recommended_methods_become_the_defaults_with_their_evidence(tmp_path: Path, weights_sha256: str) -> None:
    folder = evaluations.write_evaluation(tmp_path / "evaluation", weights_sha256)
    arguments = ("archive", "--model", SMALL, "--graphs", "none", "--methods", "recommended", "--evaluation", folder)
    for store in ("first", "second"):
        convlens(*arguments, "--store", tmp_path / store)
    archive = tmp_path / "first" / "convlens.mar"
    found = section(archive)
    assert found["methods"] == ["guided_backprop", "grad_cam"]
    evidence = found["evaluation"]
    assert isinstance(evidence, dict)
    assert (evidence["weights_sha256"], evidence["pictures"], evidence["metric"]) == (
        weights_sha256,
        200,
        "faithfulness",
    )
    assert evidence["methods"]["guided_backprop"] == {
        "mean": pytest.approx(0.39),
        "low": pytest.approx(0.36),
        "high": pytest.approx(0.42),
        "n": 200,
        "options": {},
    }
    assert archive.read_bytes() == (tmp_path / "second" / "convlens.mar").read_bytes()


def test_recommended_methods_stand_beside_others_that_are_named(tmp_path: Path, weights_sha256: str) -> None:
    folder = evaluations.write_evaluation(tmp_path / "evaluation", weights_sha256)
    methods = ("--methods", "recommended,saliency,grad_cam", "--evaluation", folder)
    convlens("archive", "--model", SMALL, "--graphs", "none", "--store", tmp_path, *methods)
    assert section(tmp_path / "convlens.mar")["methods"] == ["guided_backprop", "grad_cam", "saliency"]


def test_options_that_the_defaults_will_not_have_are_said(tmp_path: Path, weights_sha256: str) -> None:
    verdict = evaluations.verdict(("occlusion",))  # evaluated with window=48
    folder = evaluations.write_evaluation(tmp_path / "evaluation", weights_sha256, verdict=verdict)
    methods = ("--methods", "recommended", "--evaluation", folder)
    result = convlens("archive", "--model", SMALL, "--graphs", "none", "--store", tmp_path, *methods)
    assert "occlusion was evaluated with window=48" in result.output


def test_an_evaluation_of_other_weights_makes_no_archive(tmp_path: Path, weights_sha256: str) -> None:
    folder = evaluations.write_evaluation(tmp_path / "evaluation", "0" * 64)
    methods = ("--methods", "recommended", "--evaluation", folder)
    with pytest.raises(RequestError, match=f"{'0' * 64}.*{weights_sha256}"):
        convlens("archive", "--model", SMALL, "--store", tmp_path / "store", *methods)
    assert not list(tmp_path.rglob("*.mar"))


@pytest.mark.parametrize("command", [("archive",), ("explain", "picture.png", "-o", "out")], ids=["archive", "explain"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "recommended"), "give its folder by --evaluation, make one with `convlens evaluate`"),
        (("--methods", "saliency", "--evaluation", "e"), "--evaluation e is read for --methods recommended only"),
        (("--methods", "recommended", "--evaluation", "e"), "no finished evaluation in e .*convlens evaluate"),
    ],
    ids=["no-evaluation", "not-recommended", "missing"],
)
def test_an_evaluation_and_recommended_methods_go_together(
    elsewhere: Path, command: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        convlens(*command, "--model", SMALL, *arguments)
    assert not list(elsewhere.iterdir())
