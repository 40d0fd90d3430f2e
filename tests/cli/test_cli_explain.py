"""``convlens explain`` and ``convlens gallery`` as a user meets them: real model, real pictures, real files."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from typer.testing import CliRunner, Result

from convlens import ForwardPass, image, load, run
from convlens.cli.main import build
from convlens.cli.results import read_results
from convlens.errors import ConvLensError, ModelError, RequestError
from convlens.explain import available_methods, run_neurons
from convlens.report import TrueClass
from convlens.types import Attribution, Neuron

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
SMALL = "torchvision:squeezenet1_1:untrained?size=64&resize=64"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if isinstance(result.exception, ConvLensError):
        raise result.exception
    return result


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_bytes((PHOTOGRAPHS / "rocket.jpg").read_bytes()[:5000])
    return path


def test_arrays_pictures_reply_report_and_manifest_are_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = convlens("explain", PHOTOGRAPHS / "chelsea.png", "--methods", "saliency,grad_cam", "-o", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["chelsea", "manifest.json", "predictions.csv", "report.html"]
    assert {path.name for path in (out / "chelsea").iterdir()} == {
        "view.png",
        "thumbnail.jpg",
        "reply.json",
        *(f"{name}.{end}" for name in ("saliency", "grad_cam") for end in ("npz", "overlay.png", "heatmap.png")),
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["pictures"] == [{"name": "chelsea.png", "folder": "chelsea"}]


def test_a_report_for_mailing_needs_no_file_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("explain", PHOTOGRAPHS / "chelsea.png", "--methods", "saliency", "--single-file", "-o", out)
    assert convlens(*given).exit_code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    for name in ("view.png", "saliency.overlay.png", "saliency.heatmap.png"):
        assert base64.b64encode((out / "chelsea" / name).read_bytes()).decode() in page
    assert page.count("<img ") == page.count('<img src="data:image/') == 3


def test_the_array_written_is_the_library_s(tmp_path: Path) -> None:
    convlens("explain", PHOTOGRAPHS / "coffee.png", "--methods", "saliency", "--target", "cup", "-o", tmp_path / "out")
    classifier = load(device="cpu")
    x_CHW = image.prepare(image.read(PHOTOGRAPHS / "coffee.png"), classifier.spec).x_CHW
    expected = run("saliency", ForwardPass(classifier, x_CHW[None]), [classifier.spec.labels.index("cup")])
    with np.load(tmp_path / "out" / "coffee" / "saliency.npz", allow_pickle=False) as arrays:
        # The same float32 arithmetic, but for threads that may add in another order.
        np.testing.assert_allclose(arrays["values_NCHW"], expected.values_NCHW, rtol=1e-3, atol=1e-5)


def test_a_neuron_is_explained_where_it_is_strongest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = convlens("explain", PHOTOGRAPHS / "chelsea.png", "--neuron", "blocks.1.0:3", "-o", out)
    assert result.exit_code == 0, result.output
    classifier = load(device="cpu")
    x_CHW = image.prepare(image.read(PHOTOGRAPHS / "chelsea.png"), classifier.spec).x_CHW
    forward = ForwardPass(classifier, x_CHW[None])
    assert not (out / "chelsea" / "deconvnet.npz").exists()
    for method in ("saliency", "guided_backprop"):
        wanted = run_neurons(method, forward, [Neuron("blocks.1.0", 3)])
        assert isinstance(wanted, Attribution)
        with np.load(out / "chelsea" / f"{method}.npz", allow_pickle=False) as arrays:
            np.testing.assert_allclose(arrays["values_NCHW"], wanted.values_NCHW, rtol=1e-3, atol=1e-5)
    reply = json.loads((out / "chelsea" / "reply.json").read_text())
    assert reply["explanations"][0]["neuron"]["y"] == wanted.neurons_N[0].y
    assert str(wanted.neurons_N[0]) in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--neuron", "blocks.1.0"), "should read LAYER:CHANNEL or LAYER:CHANNEL@Y,X"),
        (("--neuron", "blocks.1.0:3@1"), "should read LAYER:CHANNEL or LAYER:CHANNEL@Y,X"),
        (("--neuron", "blocks.1.0:3", "--target", "cup"), "give one of them"),
    ],
)
def test_what_names_no_neuron_is_refused(tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        convlens("explain", PHOTOGRAPHS / "chelsea.png", *given, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_reach_their_method(tmp_path: Path) -> None:
    arguments = ("--methods", "occlusion", "--set", "occlusion.window=112", "--set", "occlusion.stride=112")
    convlens("explain", PHOTOGRAPHS / "coffee.png", *arguments, "-o", tmp_path / "out")
    reply = json.loads((tmp_path / "out" / "coffee" / "reply.json").read_text())
    assert reply["explanations"][0]["options"]["window"] == 112
    assert reply["explanations"][0]["extras"]["grid_NRQ"]["shape"] == [2, 2]


def test_a_broken_picture_is_named_and_the_others_are_explained(tmp_path: Path, broken: Path) -> None:
    result = convlens("explain", broken, PHOTOGRAPHS / "chelsea.png", "--methods", "saliency", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "broken.jpg" in result.output
    assert (tmp_path / "out" / "chelsea" / "saliency.npz").is_file()
    assert not (tmp_path / "out" / "broken").exists()


def in_folders_of_their_classes(tmp_path: Path) -> tuple[list[Path], str]:
    for folder, name in (("tiger cat", "chelsea.png"), ("espresso", "coffee.png")):
        (tmp_path / "images" / folder).mkdir(parents=True)
        shutil.copy(PHOTOGRAPHS / name, tmp_path / "images" / folder)
    return [tmp_path / "images" / "tiger cat", tmp_path / "images" / "espresso" / "coffee.png"], "folder"


def in_a_table(tmp_path: Path) -> tuple[list[Path], str]:
    (tmp_path / "labels.csv").write_text("file,label\nchelsea.png,tiger cat\ncoffee.png,espresso\n", encoding="utf-8")
    return [PHOTOGRAPHS / "chelsea.png", PHOTOGRAPHS / "coffee.png"], str(tmp_path / "labels.csv")


# ImageNet's numbers of the two classes.
@pytest.mark.parametrize("labelled", [in_folders_of_their_classes, in_a_table])
def test_true_classes_stand_beside_the_predictions_and_are_read_back(
    tmp_path: Path, labelled: Callable[[Path], tuple[list[Path], str]]
) -> None:
    images, source = labelled(tmp_path)
    convlens("explain", *images, "--methods", "saliency", "--model", SMALL, "--labels", source, "-o", tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        first, *_, last = list(csv.DictReader(file))
    assert (first["file"], first["true_index"], first["true_label"]) == ("chelsea.png", "282", "tiger cat")
    assert (last["file"], last["true_index"], last["true_label"]) == ("coffee.png", "967", "espresso")
    found = [result.true_class for result in read_results(tmp_path / "out")]
    assert found == [TrueClass(282, "tiger cat"), TrueClass(967, "espresso")]


def test_a_label_that_the_network_does_not_have_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\nchelsea.png,tiger kat\n", encoding="utf-8")
    given = ("--model", SMALL, "--labels", tmp_path / "labels.csv", "-o", tmp_path / "out")
    with pytest.raises(RequestError, match=r"label of 'chelsea\.png'.*did you mean.*tiger cat"):
        convlens("explain", PHOTOGRAPHS / "chelsea.png", *given)
    assert not (tmp_path / "out").exists()


def test_pictures_of_one_name_from_two_folders_both_get_a_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.png").write_bytes((PHOTOGRAPHS / "chelsea.png").read_bytes())
    convlens("explain", tmp_path / "a", tmp_path / "b", "--methods", "saliency", "-o", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"cat", "cat-2"}


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="other things"):
        convlens("explain", PHOTOGRAPHS / "chelsea.png", "--methods", "saliency", "-o", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_run_replaces_the_first_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convlens("explain", PHOTOGRAPHS / "chelsea.png", "--methods", "saliency", "-o", out)
    convlens("explain", PHOTOGRAPHS / "coffee.png", "--methods", "saliency", "-o", out)
    assert {path.name for path in out.iterdir()} == {"coffee", "manifest.json", "predictions.csv", "report.html"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no drafts left behind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "occlude"), "did you mean occlusion"),
        (("--methods", "saliency", "--set", "occlusion.window=3"), "one of the methods asked for"),
        (("--methods", "occlusion", "--set", "occlusion.windw=3"), "did you mean window"),
        (("--methods", "saliency", "--target", "tiger cta"), "tiger cat"),
        (("--methods", "saliency", "--target", "1000"), "0..999"),
        (("--methods", "neighbours"), "gallery build"),
    ],
)
def test_what_cannot_be_honoured_is_said_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    try:
        result = convlens("explain", PHOTOGRAPHS / "chelsea.png", *arguments, "-o", out)
        said, code = result.output, result.exit_code
    except ConvLensError as error:
        said, code = error.message, 2
    assert message in " ".join(said.split())
    assert code != 0
    assert not out.exists()


def test_a_gallery_of_other_views_finds_the_same_animal(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for name in ("chelsea", "coffee", "astronaut"):
        view = image.read(PHOTOGRAPHS / f"{name}.png").transpose(0).crop((30, 0, 300, 290))  # mirrored, cropped
        (pictures / name).mkdir(parents=True)
        (pictures / name / "view.png").write_bytes(image.encode_png(np.asarray(view)))
    (pictures / "chelsea" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much more")
    built = convlens("gallery", "build", pictures, "-o", tmp_path / "gallery")
    assert built.exit_code == 0
    assert "broken.png" in built.output
    arguments = ("--methods", "neighbours", "--gallery", tmp_path / "gallery", "--set", "neighbours.k=3")
    convlens("explain", PHOTOGRAPHS / "chelsea.png", *arguments, "-o", tmp_path / "out")
    reply = json.loads((tmp_path / "out" / "chelsea" / "reply.json").read_text())
    assert reply["explanations"][0]["neighbours"][0]["label"] == "chelsea"


NET = """
import torch
from torch import nn


def factory():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    return f"file:{tmp_path}/net.py:factory?size=48&resize=48&labels={tmp_path}/names.txt"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("chelsea", "coffee"):
        with Image.open(PHOTOGRAPHS / f"{name}.png") as photograph:
            photograph.resize((60, 48)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("asked", ["all", ""])
def test_a_gallery_adds_neighbours_to_all_methods_and_to_the_default_ones(
    tiny: str, pictures: Path, tmp_path: Path, asked: str
) -> None:
    convlens("gallery", "build", pictures, "--model", tiny, "--no-accelerate", "-o", tmp_path / "gallery")
    few = ("rise.masks=8", "smoothgrad.samples=2", "gradient_shap.samples=2", "integrated_gradients.steps=4")
    options = ["--methods", asked, *(part for value in few for part in ("--set", value))] if asked else []
    common = ("--model", tiny, "--no-accelerate", "--gallery", tmp_path / "gallery", "-o", tmp_path / "out")
    common += ("--set", "neighbours.k=2")
    result = convlens("explain", pictures / "coffee.png", *options, *common)
    assert result.exit_code == 0, result.output
    reply = json.loads((tmp_path / "out" / "coffee" / "reply.json").read_text())
    methods = {each["method"]: each for each in reply["explanations"]}
    # The image itself is in the gallery, at distance 0.
    nearest = methods["neighbours"]["neighbours"][0]
    assert (nearest["id"], nearest["distance"]) == ("coffee.png", pytest.approx(0, abs=1e-3))
    wanted = set(available_methods()) if asked else {"saliency", "guided_backprop", "occlusion", "neighbours"}
    assert set(methods) == wanted


def test_a_sweep_that_a_server_refuses_is_computed_offline(tiny: str, pictures: Path, tmp_path: Path) -> None:
    # (48 - 2 + 1)² = 2209 windows, where servers allow 2000 passes.
    sweep = ("--methods", "occlusion", "--set", "occlusion.window=2", "--set", "occlusion.stride=1", "--target", 0)
    common = (pictures / "coffee.png", "--model", tiny, "--no-accelerate", *sweep, "-o", tmp_path / "out")
    assert convlens("explain", *common).exit_code == 0
    reply = json.loads((tmp_path / "out" / "coffee" / "reply.json").read_text())
    assert reply["explanations"][0]["extras"]["grid_NRQ"]["shape"] == [47, 47]


def test_max_passes_refuses_what_needs_more_and_says_what_would_fit(tiny: str, pictures: Path, tmp_path: Path) -> None:
    # (48 - 16) / 8 + 1 = 5 windows a side, and the pass of the image itself.
    sweep = ("--methods", "occlusion", "--set", "occlusion.window=16", "--set", "occlusion.stride=8", "--target", 0)
    common = (pictures / "coffee.png", "--model", tiny, "--no-accelerate", *sweep, "-o", tmp_path / "out")
    refused = convlens("explain", *common, "--max-passes", 20)
    said = " ".join(refused.output.split())
    assert refused.exit_code == 1
    assert "and 20 are allowed; occlusion with stride=" in said
    assert not (tmp_path / "out").exists()
    assert convlens("explain", *common, "--max-passes", 30).exit_code == 0


def test_a_sweep_on_an_exported_graph_gives_the_same_map(tmp_path: Path) -> None:
    model = ("--model", "torchvision:squeezenet1_1:untrained?size=64&resize=64")
    graph = tmp_path / "scores.onnx"
    assert convlens("export", "scores", *model, "-o", graph).exit_code == 0
    sweep = (PHOTOGRAPHS / "coffee.png", *model, "--methods", "occlusion", "--target", "504")
    convlens("explain", *sweep, "-o", tmp_path / "torch")
    convlens("explain", *sweep, "-o", tmp_path / "onnx", "--graphs", graph)
    by_torch, by_onnx = (
        np.load(tmp_path / name / "coffee" / "occlusion.npz")["values_NCHW"] for name in ("torch", "onnx")
    )
    # Drops are small differences of scores that agree to 1e-4 relative.
    scale = json.loads((tmp_path / "torch" / "coffee" / "reply.json").read_text())["explanations"][0]["target_score"]
    np.testing.assert_allclose(by_onnx, by_torch, atol=1e-4 * abs(scale))
    said = json.loads((tmp_path / "onnx" / "coffee" / "reply.json").read_text())["explanations"][0]["meta"]["runtime"]
    assert said == "onnxruntime:CPUExecutionProvider"


def test_a_graph_of_other_weights_is_refused(tmp_path: Path) -> None:
    graph = tmp_path / "scores.onnx"
    convlens("export", "scores", "--model", "torchvision:squeezenet1_1:untrained?size=64&resize=64", "-o", graph)
    with pytest.raises(ModelError, match="exported from weights"):
        convlens("explain", PHOTOGRAPHS / "coffee.png", "--graphs", graph, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_graphs_explains_without_the_network(tmp_path: Path) -> None:
    model = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
    graphs = tmp_path / "graphs"
    made = convlens("export", "bundle", "--model", model, "-o", graphs, "--kinds", "embedding", "occlusion")
    assert made.exit_code == 0
    asked = (PHOTOGRAPHS / "coffee.png", "--methods", "occlusion", "--target", "504")
    convlens("explain", *asked, "--model", model, "-o", tmp_path / "torch")
    convlens("explain", *asked, "--model", f"graphs:{graphs}", "-o", tmp_path / "onnx")
    by_torch, by_onnx = (
        json.loads((tmp_path / name / "coffee" / "reply.json").read_text()) for name in ("torch", "onnx")
    )
    assert (by_torch["runtime"], by_onnx["runtime"]) == ("torch", "onnxruntime:CPUExecutionProvider")
    assert [one["index"] for one in by_onnx["predictions"]] == [one["index"] for one in by_torch["predictions"]]
    maps = [np.load(tmp_path / name / "coffee" / "occlusion.npz")["values_NCHW"] for name in ("torch", "onnx")]
    scale = abs(by_torch["explanations"][0]["target_score"])
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-4 * scale)


def test_an_incremental_sweep_gets_its_graph_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    asked = (PHOTOGRAPHS / "coffee.png", "--model", "torchvision:squeezenet1_1:untrained?size=64&resize=64")
    windows = ("--methods", "occlusion", "--set", "occlusion.window=8", "--set", "occlusion.stride=4")
    convlens("explain", *asked, *windows, "--target", "504", "-o", "full")
    convlens("explain", *asked, *windows, "--target", "504", "--set", "occlusion.strategy=incremental", "-o", "some")
    full, some = (np.load(Path(name) / "coffee" / "occlusion.npz")["values_NCHW"] for name in ("full", "some"))
    reply = json.loads((Path("some") / "coffee" / "reply.json").read_text())["explanations"][0]
    np.testing.assert_allclose(some, full, atol=1e-4 * abs(reply["target_score"]))
    # Where the plan does not pay on so small a picture, the graph is a full one and says so.
    assert reply["meta"]["sweep"] == "incremental graph" or reply["meta"]["warnings"]
    assert list((tmp_path / "cache").rglob("occlusion.onnx"))


def test_graphs_beside_a_model_of_graphs_are_refused(tmp_path: Path) -> None:
    model = "torchvision:squeezenet1_1:untrained?size=64&resize=64"
    convlens("export", "bundle", "--model", model, "-o", tmp_path / "graphs", "--kinds", "embedding")
    given = ("--model", f"graphs:{tmp_path / 'graphs'}", "--graphs", tmp_path / "graphs", "-o", tmp_path / "out")
    with pytest.raises(RequestError, match="consists of graphs"):
        convlens("explain", PHOTOGRAPHS / "coffee.png", *given)
