"""``convlens lecture`` as a user meets it: a small network, few steps, real commands."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import skimage
import small_lecture_network
from browser_probe import BROWSER, DARK, WIDTHS, browse, serve
from PIL import Image
from typer.testing import CliRunner, Result

from convlens.cli.main import build
from convlens.errors import ConvLensError, RequestError
from convlens.lecture import chapter_names

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
SMALL = f"file:{small_lecture_network.__file__}:make?size=64&resize=64"
SILU = "timm:test_efficientnet:untrained?size=64&resize=64"


def convlens(*arguments: object) -> Result:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(given), given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def make(out: Path, images: Path, chapters: str, model: str = SMALL) -> Result:
    return convlens("lecture", "-o", out, "--images", images, "--model", model, "--quick", "--chapters", chapters)


def stored(out: Path) -> dict[str, dict]:
    files = sorted((out / "figures").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def digests(out: Path) -> dict[str, str]:
    files = [out / "index.html", *sorted((out / "figures").iterdir())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten crops of two photographs, in a folder a photograph."""
    made = tmp_path_factory.mktemp("images")
    for n in range(10):
        name = ("chelsea.png", "coffee.png")[n % 2]
        (made / name[:-4]).mkdir(exist_ok=True)
        with Image.open(PHOTOGRAPHS / name) as picture:
            left, top = 15 * n, 8 * n
            crop = picture.convert("RGB").crop((left, top, left + 160, top + 160))
            crop.save(made / name[:-4] / f"{n:02}.png")
    return made


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick lecture with all chapters."""
    out = tmp_path_factory.mktemp("whole") / "lecture"
    make(out, images, ",".join(chapter_names()))
    return out


@pytest.fixture(scope="module")
def page(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lecture with six figures and one that is left out."""
    out = tmp_path_factory.mktemp("page") / "lecture"
    make(out, images, "filters,saliency,relu,backprop,dream", SILU)
    return out


@pytest.mark.slow
def test_every_chapter_has_its_figures_with_text_numbers_and_a_file(whole: Path) -> None:
    figures = stored(whole)
    assert {name for name, each in figures.items() if "left_out" in each} == set()
    assert {each["chapter"] for each in figures.values()} == set(chapter_names())
    for name, figure in figures.items():
        assert figure["shows"] and figure["does_not_show"] and figure["numbers"], name
        with Image.open(whole / "figures" / figure["file"]) as drawn:
            assert drawn.size == (figure["width"], figure["height"])
            assert np.asarray(drawn).std() > 5, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saliency", "fooling", "pca", "first-filters", "texture-quilt", "patches-middle"])
def test_the_command_below_a_figure_makes_the_same_results_alone(
    whole: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in stored(whole)[name]["commands"]:
        program, *arguments = shlex.split(command)
        assert program == "convlens"
        convlens(*arguments)
    again = {path.relative_to(tmp_path) for path in (tmp_path / "results").rglob("*.[pj][np]g")}
    assert again, "the command writes images"
    for path in again:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / path)), np.asarray(Image.open(whole / path)))


@pytest.mark.slow
def test_a_lecture_killed_at_any_figure_and_resumed_equals_one_in_one_go(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    from convlens.lecture import writer

    write, left, lives = writer._write, 1, cycle((4, 5, 6))

    def killing(path: Path, data: bytes) -> None:
        nonlocal left
        if left == 0:  # before a page, a figure or its numbers in turn
            left = next(lives)
            raise Killed
        left -= 1
        write(path, data)

    chapters = "filters,maps,occlusion,relu,fooling,inversion,textures"
    make(tmp_path / "whole", images, chapters)
    out = tmp_path / "lecture"
    monkeypatch.setattr(writer, "_write", killing)
    kills = 0
    while True:
        try:
            make(out, images, chapters)
            break
        except Killed:
            kills += 1
            assert kills < 50
    assert kills > 5
    monkeypatch.undo()
    make(out, images, chapters)  # the page, where the kill came right after the last figure
    assert digests(out) == digests(tmp_path / "whole")


def test_a_figure_that_is_there_is_not_made_again(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "lecture"
    make(out, images, "relu,filters")
    before = {path: path.stat().st_mtime_ns for path in (out / "figures").iterdir()}
    make(out, images, "relu,filters")
    assert {path: path.stat().st_mtime_ns for path in (out / "figures").iterdir()} == before


def test_a_figure_that_was_removed_is_made_from_the_results_that_are_there(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "lecture"
    make(out, images, "filters")
    (out / "figures" / "first-filters.json").unlink()
    result = out / "results" / "first-filters.png"
    written = result.stat().st_mtime_ns
    make(out, images, "filters")
    assert (out / "figures" / "first-filters.json").is_file()
    assert result.stat().st_mtime_ns == written


def test_chapters_are_chosen_and_the_page_names_the_others(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "lecture"
    make(out, images, "relu")
    assert set(stored(out)) == {"relu"}
    page = (out / "index.html").read_text(encoding="utf-8")
    assert re.search(r"Not made yet: Filters, Nearest neighbours,.*Texture synthesis\.", page)


def test_chapters_made_later_join_those_on_the_page(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "lecture"
    make(out, images, "relu")
    make(out, images, "filters")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.index("figures/first-filters.png") < page.index("figures/relu.png")  # in the lecture's order


def test_an_unknown_chapter_is_refused_with_those_there_are(images: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no chapter 'occlude'; did you mean occlusion.*there are: .*textures"):
        make(tmp_path / "lecture", images, "occlude")
    assert not (tmp_path / "lecture").exists()


def test_a_folder_of_other_things_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RequestError, match="holds other things than a lecture; choose a new or empty folder"):
        make(tmp_path, images, "relu")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_another_lecture_in_the_same_folder_is_refused_with_what_differs(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "lecture"
    make(out, images, "relu")
    with pytest.raises(RequestError, match="holds a lecture with other quick; choose another folder"):
        convlens("lecture", "-o", out, "--images", images, "--model", SMALL, "--chapters", "relu")


def test_what_a_network_cannot_do_is_left_out_with_the_reason(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "lecture"
    result = make(out, images, "saliency,backprop", model=SILU)
    figures = stored(out)
    assert "file" in figures["saliency"]
    assert "SiLU" in figures["guided-backprop"]["left_out"]
    assert "left out: Guided backpropagation" in result.output
    assert "is left out: <bdi>guided_backprop" in (out / "index.html").read_text(encoding="utf-8")


def test_patches_of_a_network_without_relus_show_the_plain_gradient_and_say_so(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "lecture"
    make(out, images, "patches", model=SILU)
    figure = stored(out)["patches-middle"]
    assert figure["numbers"]["backprop"] == "saliency"
    assert "SiLU" in dict(figure["facts"])["Gradient"]
    assert "--backprop saliency" in figure["commands"][0]


@pytest.mark.slow
def test_the_confident_fooling_image_has_a_probability_of_nine_tenths(whole: Path) -> None:
    facts = stored(whole)["fooling-confident"]["numbers"]["facts"]
    assert facts["after"][0]["label"] == facts["target"]
    assert facts["after"][0]["probability"] >= 0.9


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
class TestPage:
    @pytest.fixture
    def served(self, page: Path) -> Iterator[tuple[str, list[str]]]:
        with serve(page, "index.html") as (address, asked):
            yield address, asked

    @pytest.mark.parametrize(("flags", "is_dark"), [((), False), ((DARK,), True)], ids=["light", "dark"])
    def test_a_browser_shows_it_at_every_width_with_readable_text_and_no_complaint(
        self, served: tuple[str, list[str]], page: Path, tmp_path: Path, flags: tuple[str, ...], is_dark: bool
    ) -> None:
        frames, complaints = browse(served[0], tmp_path / "profile", *flags)
        assert [frame["needed"] for frame in frames] == list(WIDTHS)  # nothing sticks out sideways
        made = ["file" in figure for figure in stored(page).values()]
        assert (made.count(True), made.count(False)) == (6, 1)
        assert {(frame["images"], frame["broken"]) for frame in frames} == {(6, 0)}
        assert [frame["faint"] for frame in frames] == [[]] * len(WIDTHS)
        assert {frame["paper"] < 0.1 for frame in frames} == {is_dark}
        assert "CONSOLE" not in complaints

    def test_every_image_of_the_page_is_lazy(self, page: Path) -> None:
        text = (page / "index.html").read_text(encoding="utf-8")
        assert text.count("<img ") == text.count('loading="lazy"') == 6


@pytest.mark.slow
def test_every_address_of_the_page_is_a_file_of_the_folder(whole: Path) -> None:
    page = (whole / "index.html").read_text(encoding="utf-8")
    addresses = {each for each in re.findall(r'(?:href|src)="([^"#]+)"', page) if not each.startswith("data:")}
    assert addresses
    assert [each for each in sorted(addresses) if not (whole / each).is_file()] == []


def test_without_images_the_photographs_are_copied_with_their_views(tmp_path: Path) -> None:
    out = tmp_path / "lecture"
    convlens("lecture", "-o", out, "--model", SMALL, "--quick", "--chapters", "neighbours")
    copies = sorted((out / "pictures" / "cat").iterdir())
    assert {path.stem for path in copies} == {
        "chelsea", "chelsea-close", "chelsea-dark", "chelsea-left", "chelsea-mirrored", "chelsea-right",
    }  # fmt: skip
    with Image.open(PHOTOGRAPHS / "chelsea.png") as photograph, Image.open(out / "pictures/cat/chelsea.jpg") as copy:
        assert copy.size == photograph.size  # below 512 pixels
        difference = np.abs(np.asarray(copy).astype(int) - np.asarray(photograph.convert("RGB")))
    assert difference.mean() < 2  # JPEG
    figure = stored(out)["neighbours"]
    assert "pictures/cat/chelsea.jpg" in figure["commands"][1]
    queries = {row["query"] for row in figure["numbers"]["neighbours"]}
    assert len(queries) == 3 and "pictures/cat/chelsea.jpg" in queries


def test_files_of_a_model_are_found_from_wherever_the_command_was_given(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_bytes(Path(small_lecture_network.__file__).read_bytes())
    (tmp_path / "names.txt").write_text("".join(f"kind {n}\n" for n in range(10)))
    monkeypatch.chdir(tmp_path)
    make(Path("lecture"), images, "saliency", "file:net.py:make?size=64&resize=64&labels=names.txt")
    command = stored(Path("lecture"))["saliency"]["commands"][0]
    assert f"file:{tmp_path}/net.py:make" in command and f"labels={tmp_path}/names.txt" in command
    predictions = stored(Path("lecture"))["saliency"]["numbers"]["pictures"][0]["predictions"]
    assert predictions[0]["label"].startswith("kind ")


def test_a_lecture_within_its_own_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"lies in --images .*, whose images would then be its own"):
        make(tmp_path / "images" / "lecture", tmp_path / "images", "relu")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvLensError, match="nowhere"):
        make(tmp_path / "lecture", tmp_path / "nowhere", "relu")
