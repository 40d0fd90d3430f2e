"""A reply as a folder of files: nothing is lost, nothing is there twice, and no name leads out of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import engine, replied, request, small_gallery

from convlens.errors import ConvLensError
from convlens.protocol.params import parse_params
from convlens.protocol.reply_folder import read_reply, write_reply
from convlens.protocol.responses import to_json
from convlens.types import Attribution, Neighbourhood, Reply

METHODS = ["saliency", {"method": "occlusion", "options": {"window": 8, "stride": 4}}, "neighbours"]
PARAMS: dict[str, Any] = {"methods": METHODS, "output": ["array", "overlay", "heatmap"], "evaluate": ["deletion"]}


@pytest.fixture(scope="module")
def reply(tmp_path_factory: pytest.TempPathFactory) -> Reply:
    gallery = small_gallery(tmp_path_factory.mktemp("gallery") / "g")
    (answer,) = engine(gallery=gallery).run([request(2, **PARAMS)])
    return with_one_thumbnail(replied(answer))


def with_one_thumbnail(reply: Reply) -> Reply:
    """The reply with a picture of its nearest neighbour alone, as of a gallery that lacks some."""
    *maps, near = reply.explanations
    assert isinstance(near.result, Neighbourhood)
    first, *others = near.result.neighbours_NM[0]
    row = (first, *(replace(other, thumbnail=b"") for other in others))
    return replace(reply, explanations=(*maps, replace(near, result=replace(near.result, neighbours_NM=(row,)))))


@pytest.fixture
def folder(reply: Reply, tmp_path: Path) -> Path:
    write_reply(tmp_path, reply)
    return tmp_path


def edited(folder: Path, **array: Any) -> None:
    """Change what the JSON says of the first map."""
    body = json.loads((folder / "reply.json").read_text())
    body["explanations"][0]["array"] |= array
    (folder / "reply.json").write_text(json.dumps(body))


def test_what_is_read_is_what_was_written(reply: Reply, folder: Path) -> None:
    params = parse_params(PARAMS)
    assert to_json(read_reply(folder), params) == to_json(reply, params)


def test_arrays_come_back_bit_by_bit_with_their_dtype(reply: Reply, tmp_path: Path) -> None:
    first = reply.explanations[0]
    assert isinstance(first.result, Attribution)
    doubled = replace(first.result, values_NCHW=np.asarray(first.result.values_NCHW, np.float64) / 3)
    write_reply(tmp_path, replace(reply, explanations=(replace(first, result=doubled),)))
    result = read_reply(tmp_path).explanations[0].result
    assert isinstance(result, Attribution)
    assert result.values_NCHW.dtype == np.float64
    np.testing.assert_array_equal(result.values_NCHW, doubled.values_NCHW)


def test_the_files_are_those_that_numpy_and_an_image_viewer_open(reply: Reply, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "reply.json", "saliency.npz", "saliency.overlay.png", "saliency.heatmap.png",
        "occlusion.npz", "occlusion.overlay.png", "occlusion.heatmap.png", "neighbours.1.jpg",
    }  # fmt: skip
    occlusion = reply.explanations[1].result
    assert isinstance(occlusion, Attribution)
    with np.load(folder / "occlusion.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["values_NCHW"], occlusion.values_NCHW)
        # Windows of 8 in steps of 4 over 24 pixels begin at 0, 4, 8, 12 and 16.
        assert arrays["grid_NRQ"].shape == (1, 5, 5)


def test_the_json_names_the_files_and_holds_none_of_their_data(folder: Path) -> None:
    text = (folder / "reply.json").read_text()
    assert "base64" not in text
    saliency, occlusion, near = json.loads(text)["explanations"]
    place = {"encoding": "attached", "data": "saliency.npz/values_NCHW"}
    assert saliency["array"] == {"dtype": "<f4", "shape": [3, 24, 24], "layout": "CHW", **place}
    assert occlusion["extras"]["grid_NRQ"]["data"] == "occlusion.npz/grid_NRQ"
    assert occlusion["overlay"] == {
        "media_type": "image/png",
        "encoding": "attached",
        "data": "occlusion.overlay.png",
    }
    assert ["thumbnail" in each for each in near["neighbours"]][:2] == [True, False]


@pytest.mark.parametrize("name", ["../saliency", "/etc/passwd", "..\\saliency", ""])
def test_an_id_that_leads_out_of_the_folder_is_not_written(reply: Reply, tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    odd = replace(reply, explanations=(replace(reply.explanations[0], id=name),))
    with pytest.raises(ConvLensError, match="plain file name"):
        write_reply(tmp_path / "inner", odd)
    assert [path.name for path in tmp_path.rglob("*")] == ["inner"]


def test_two_explanations_of_one_id_are_refused(reply: Reply, tmp_path: Path) -> None:
    with pytest.raises(ConvLensError, match="share an id among saliency, saliency"):
        write_reply(tmp_path, replace(reply, explanations=(reply.explanations[0],) * 2))


def test_a_name_in_the_json_that_leads_out_of_the_folder_is_not_read(folder: Path) -> None:
    edited(folder, data="../saliency.npz/values_NCHW")
    with pytest.raises(ConvLensError, match=r"plain file name|no whole reply"):
        read_reply(folder)


@pytest.mark.parametrize("said", [{"dtype": "<f2"}, {"shape": [3, 24, 12]}, {"data": "saliency.npz/other"}])
def test_an_array_that_is_not_what_the_json_says_is_refused(folder: Path, said: dict[str, Any]) -> None:
    edited(folder, **said)
    with pytest.raises(ConvLensError, match="no whole reply"):
        read_reply(folder)


@pytest.mark.parametrize("name", ["reply.json", "saliency.npz", "occlusion.overlay.png"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConvLensError, match=name):
        read_reply(folder)


@pytest.mark.parametrize("name", ["reply.json", "saliency.npz"])
def test_a_file_that_is_cut_short_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(ConvLensError, match="no whole reply"):
        read_reply(folder)
