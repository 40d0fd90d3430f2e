"""The folder that ``explain`` and ``query`` write: what is in it, how large it is, and that it is read back whole."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from engines import engine, picture, replied, request

from convlens import image
from convlens.cli.results import ImageResult, read_results, write_results
from convlens.errors import ConvLensError, RequestError
from convlens.protocol.params import parse_params
from convlens.protocol.responses import to_json
from convlens.types import Attribution, Reply

PARAMS = {"methods": ["saliency", "grad_cam"], "output": ["array", "overlay", "heatmap"], "topk": 3}


@pytest.fixture(scope="module")
def replies() -> list[Reply]:
    return [replied(answer) for answer in engine().run([request(n, **PARAMS) for n in range(3)])]


def results_of(replies: list[Reply], *names: str) -> list[ImageResult]:
    views = [image.encode_png(np.asarray(picture(n))) for n in range(len(names))]
    return [ImageResult(*each) for each in zip(names, views, replies, strict=True)]


@pytest.fixture
def results(replies: list[Reply]) -> list[ImageResult]:
    return results_of(replies, "a.png", "a.jpg", "=1+1.png")


@pytest.fixture
def folder(results: list[ImageResult], tmp_path: Path) -> Path:
    write_results(tmp_path / "out", results, model="test:counted")
    return tmp_path / "out"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_is_read_back_is_what_was_written(results: list[ImageResult], folder: Path) -> None:
    params = parse_params(PARAMS)
    for found, wanted in zip(read_results(folder), results, strict=True):
        assert (found.name, found.view_png) == (wanted.name, wanted.view_png)
        assert to_json(found.reply, params) == to_json(wanted.reply, params)


def test_the_table_has_a_row_for_each_picture_and_class(results: list[ImageResult], folder: Path) -> None:
    rows = table(folder)
    assert len(rows) == 3 * 3
    for n, row in enumerate(rows):
        guess = results[n // 3].reply.predictions[n % 3]
        assert (int(row["rank"]), int(row["index"]), row["label"]) == (n % 3 + 1, guess.index, guess.label)
        assert (float(row["probability"]), float(row["logit"])) == (guess.probability, guess.logit)


def test_a_file_name_is_no_formula_in_the_table_and_pictures_of_one_stem_are_told_apart(folder: Path) -> None:
    rows = table(folder)[::3]
    assert [row["file"] for row in rows] == ["a.png", "a.jpg", "'=1+1.png"]
    assert [row["folder"] for row in rows] == ["a", "a-2", "'=1+1"]


def test_the_folder_holds_arrays_and_images_once(results: list[ImageResult], folder: Path) -> None:
    needed = sum(len(result.view_png) for result in results)
    for result in results:
        for item in result.reply.explanations:
            assert isinstance(item.result, Attribution)
            needed += len(item.overlay_png) + len(item.heatmap_png) + item.result.values_NCHW.nbytes
            needed += sum(values.nbytes for values in item.result.extras.values())
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "report.html")
    # For each picture its reply's JSON, a thumbnail and the names and headers in two archives of arrays.
    assert total - needed < 3 * 16_000


@pytest.mark.parametrize("name", ["report.html", "manifest.json", "predictions.csv"])
def test_a_picture_may_have_the_name_of_another_file(replies: list[Reply], tmp_path: Path, name: str) -> None:
    write_results(tmp_path / "out", results_of(replies[:1], f"{name}.png"), model="m")
    assert (tmp_path / "out" / name).is_file()
    assert (tmp_path / "out" / f"{name}-2" / "reply.json").is_file()


def test_results_that_cannot_be_written_leave_the_old_ones_alone(results: list[ImageResult], folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    odd = ImageResult("odd.png", b"no image", results[0].reply)
    with pytest.raises(ConvLensError):
        write_results(folder, [*results, odd], model="test:counted")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"pictures": [{"name": "a.png"}]}'])
def test_a_folder_without_results_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RequestError, match=r"holds no results.*convlens explain"):
        read_results(tmp_path)


def test_a_manifest_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["pictures"][0]["folder"] = f"../{folder.name}/a"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConvLensError, match=r"'\.\./out/a', which is not inside"):
        read_results(folder)
