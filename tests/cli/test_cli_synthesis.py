"""The synthesis commands as a user meets them: real models, real files, few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from convlens.cli.main import build
from convlens.errors import ConvLensError, JobError, RequestError
from convlens.jobs.option_docs import option_docs

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
SMALL = "torchvision:squeezenet1_1:untrained?size=64&resize=64"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if isinstance(result.exception, ConvLensError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def manifest(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "manifest.json").read_text())
    return found


def test_ascent_of_classes_by_label_and_index(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = convlens("ascent", "goldfish", "105", "--steps", "3", "--preset", "lucid", "-o", out)
    assert f"page: {out / 'index.html'}" in result.output
    assert {"00-goldfish.png", "01-koala.png", "sheet.png"} <= {path.name for path in out.iterdir()}
    job = manifest(out)["job"]
    assert isinstance(job, dict)
    assert (job["classes"], job["steps"]) == (["goldfish", 105], 3)


def test_ascent_of_channels_with_any_option_by_set(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--layer", "features.3", "--channels", "0,5", "--set", "jitter=0", "--set", "size=64")
    convlens("ascent", *options, "--steps", "2", "--model", SMALL, "-o", out)
    assert Image.open(out / "00-features-3-0.png").size == (64, 64)
    job = manifest(out)["job"]
    assert isinstance(job, dict)
    assert job["jitter"] == 0


def test_fool_writes_a_figure_and_a_picture_that_fools(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convlens("fool", PHOTOGRAPHS / "coffee.png", "--target", "koala", "--steps", "30", "-o", out)
    facts = manifest(out)["facts"]
    assert isinstance(facts, dict)
    assert facts["after"][0]["label"] == "koala"
    assert Image.open(out / "fooled.png").size == Image.open(PHOTOGRAPHS / "coffee.png").size
    # And the library's own command says so of the file.
    convlens("explain", out / "fooled.png", "--methods", "saliency", "-o", tmp_path / "said")
    reply = json.loads((tmp_path / "said" / "fooled" / "reply.json").read_text())
    assert reply["predictions"][0]["label"] == "koala"


def test_dream_with_a_guide_and_a_video(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--octaves", "1", "--steps", "2", "--side", "96", "--frames", "3", "--layers", "features.3")
    convlens(
        "dream",
        PHOTOGRAPHS / "chelsea.png",
        *options,
        "--guide",
        PHOTOGRAPHS / "coffee.png",
        "--model",
        SMALL,
        "-o",
        out,
    )
    assert Image.open(out / "dream.png").size == (96, 64)
    import imageio.v2

    frames = [np.asarray(frame) for frame in imageio.v2.get_reader(out / "video.mp4")]  # type: ignore[attr-defined]
    assert len(frames) == 3
    assert frames[0].shape == (64, 96, 3)
    wanted = np.asarray(Image.open(out / "dream.png")).astype(float)
    assert np.abs(frames[-1] - wanted).mean() < 12  # the last one, but for the video's compression
    assert "video.mp4" in (out / "index.html").read_text()


def test_invert_draws_the_layers_from_shallow_to_deep(tmp_path: Path) -> None:
    out = tmp_path / "out"
    layers = ("--layers", "features.0,features.3", "--steps", "3")
    convlens("invert", PHOTOGRAPHS / "chelsea.png", *layers, "--model", SMALL, "-o", out)
    facts = manifest(out)["facts"]
    assert isinstance(facts, dict)
    assert [one["layer"] for one in facts["layers"]] == ["features.0", "features.3"]
    assert all(one["error_over_pairwise"] is not None for one in facts["layers"])  # over scikit-image's photographs
    assert (out / "shallow-to-deep.png").is_file()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gram", ("--model", SMALL, "--layers", "features.0", "--steps", "2", "--set", "source_side=64")),
        ("quilt", ()),
        ("efros", ("--set", "source_side=24", "--set", "window=7")),
    ],
)
def test_texture_by_each_method(tmp_path: Path, method: str, options: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    convlens("texture", PHOTOGRAPHS / "brick.png", "--method", method, "--size", "80x64", *options, "-o", out)
    assert Image.open(out / "texture.png").size == (80, 64)


def test_a_batch_runs_and_says_how_each_job_ended(tmp_path: Path) -> None:
    brick = str(PHOTOGRAPHS / "brick.png")
    batch = tmp_path / "batch.yaml"
    batch.write_text(
        yaml.safe_dump(
            {
                "defaults": {"height": 64, "width": 64},
                "jobs": [
                    {"kind": "quilt", "source": brick, "name": "bricks"},
                    {"kind": "quilt", "source": brick, "block": 4000, "name": "huge"},
                ],
            }
        )
    )
    result = convlens("jobs", "run", batch, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert (tmp_path / "out" / "bricks" / "texture.png").is_file()
    assert not (tmp_path / "out" / "huge" / "manifest.json").exists()


def test_check_finds_what_cannot_run_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    brick, chelsea = str(PHOTOGRAPHS / "brick.png"), str(PHOTOGRAPHS / "chelsea.png")
    (tmp_path / "torn.jpg").write_bytes((PHOTOGRAPHS / "rocket.jpg").read_bytes()[:5000])
    jobs = {
        "bricks": {"kind": "quilt", "source": brick},
        "huge": {"kind": "quilt", "source": brick, "block": 4000},
        "missing": {"kind": "quilt", "source": "nowhere.png"},
        "torn": {"kind": "efros", "source": "torn.jpg"},
        "fish": {"kind": "ascent", "classes": ["goldfish"], "model": SMALL},
        "nobody": {"kind": "ascent", "classes": ["goldfsh"], "model": SMALL},
        "no-layer": {"kind": "invert", "picture": chelsea, "layers": ["feature.3"], "model": SMALL},
        "no-channel": {"kind": "ascent", "layer": "features.3", "channels": [4000], "model": SMALL},
        "no-guide": {"kind": "dream", "picture": chelsea, "guide": "guide.png", "model": SMALL},
        "no-model": {"kind": "ascent", "classes": [1], "model": "torchvision:resnet5:untrained"},
    }
    Path("batch.yaml").write_text(yaml.safe_dump({"jobs": [{**job, "name": name} for name, job in jobs.items()]}))
    result = convlens("jobs", "check", "batch.yaml")
    said = dict(line.split(": ", 1) for line in result.output.splitlines() if ": " in line)
    assert result.exit_code == 1
    assert (said["bricks"], said["fish"]) == ("quilt", "ascent")
    for name, reason in {
        "huge": "block",
        "missing": "nowhere.png",
        "torn": "torn.jpg",
        "nobody": "did you mean goldfish",
        "no-layer": "did you mean features.3",
        "no-channel": "4000",
        "no-guide": "guide.png",
        "no-model": "resnet5",
    }.items():
        assert reason in said[name], said[name]
    assert {path.name for path in tmp_path.iterdir()} == {"batch.yaml", "torn.jpg"}


def test_check_passes_what_can_run(tmp_path: Path) -> None:
    (tmp_path / "batch.yaml").write_text(yaml.safe_dump({"jobs": [{"kind": "ascent", "classes": [3], "model": SMALL}]}))
    result = convlens("jobs", "check", tmp_path / "batch.yaml")
    assert (result.exit_code, result.stdout) == (0, "000-ascent: ascent\n")


@pytest.mark.parametrize("kind", ["ascent", "dream", "efros", "fool", "invert", "quilt", "texture"])
def test_kinds_explains_every_option_of_one_kind(kind: str) -> None:
    listed = yaml.safe_load(convlens("jobs", "kinds").stdout.replace("(needed)", '"(needed)"'))
    rows = [line.strip("│").split("│") for line in convlens("jobs", "kinds", kind).output.splitlines() if "│" in line]
    explained = {cells[0].strip(): cells for cells in rows if cells[0].strip()}
    unused = {"model"} if kind in ("efros", "quilt") else set()
    assert set(explained) == set(listed[kind]) - unused
    assert [name for name, cells in explained.items() if not cells[1].strip() or not cells[4].strip()] == []


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("quilt", ("block", "whole number", "48", "pixels")),
        ("fool", ("target", "whole number or text", "needed", "")),
        ("ascent", ("steps", "whole number", "512 (preset robust)", "steps")),
        ("ascent", ("classes", "list of whole numbers or texts", "none", "")),
    ],
)
def test_an_option_is_explained_by_what_it_takes_its_default_and_its_unit(kind: str, row: tuple[str, ...]) -> None:
    assert row in {(doc.name, doc.values, doc.default, doc.unit) for doc in option_docs(kind)}


def test_a_kind_that_does_not_exist_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(RequestError, match="did you mean quilt"):
        convlens("jobs", "kinds", "quit")


def test_kinds_lists_every_option() -> None:
    listed = yaml.safe_load(convlens("jobs", "kinds").stdout.replace("(needed)", '"(needed)"'))
    assert listed["quilt"]["source"] == "(needed)"
    assert listed["ascent"]["preset"] == "robust"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ascent",), "needs classes, or a layer"),
        (("ascent", "koalla"), "did you mean koala"),
        (("ascent", "koala", "--set", "stps=3"), "ascent has no option 'stps'; did you mean steps"),
        (("ascent", "koala", "--set", "steps"), "should read NAME=VALUE"),
        (("ascent", "--layer", "conv_stem", "--channels", "1,two"), "--channels 1,two should read like 0,3,8"),
        (("fool", "none.png", "--target", "koala"), "cannot read none.png"),
        (("dream", PHOTOGRAPHS / "chelsea.png", "--octaves", "9"), "at most 6 octaves fit"),
        (("texture", PHOTOGRAPHS / "brick.png", "--size", "80"), "should read WIDTHxHEIGHT"),
        (
            ("texture", PHOTOGRAPHS / "brick.png", "--method", "quilt", "--steps", "3"),
            "are options of gram; quilt has none",
        ),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        convlens(*arguments, "-o", tmp_path / "out")


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(JobError, match="holds other things than a job"):
        convlens("texture", PHOTOGRAPHS / "brick.png", "--method", "quilt", "-o", tmp_path)
