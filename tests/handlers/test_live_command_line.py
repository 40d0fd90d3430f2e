"""Through a live TorchServe: what REST answers is what ``convlens explain`` writes for the same pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import PHOTOGRAPHS, Live, array, assert_same_map, photograph

METHODS = ["saliency", "guided_backprop", "occlusion", "neighbours"]
PICTURES = ["chelsea.png", "rocket.jpg"]
COARSE = {"window": 64, "stride": 40}


@pytest.fixture(scope="module")
def written(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command wrote, in a process of its own."""
    folder = tmp_path_factory.mktemp("explained") / "out"
    settings = [part for key, value in COARSE.items() for part in ("--set", f"occlusion.{key}={value}")]
    command = [sys.executable, "-c", "from convlens.cli.main import main; main()", "explain"]
    given = [str(PHOTOGRAPHS / name) for name in PICTURES]
    wanted = ["--methods", ",".join(METHODS), "--gallery", str(live.gallery), "-o", str(folder)]
    done = subprocess.run(
        [*command, *given, *wanted, *settings], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def served(live: Live) -> dict[str, dict[str, Any]]:
    """Each picture's explanations by their ids."""
    methods = [{"method": name, "options": COARSE if name == "occlusion" else {}} for name in METHODS]
    bodies = {name: live.explain({"methods": methods}, photograph(name)) for name in PICTURES}
    return {name: {one["id"]: one for one in body["explanations"]} for name, body in bodies.items()}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("method", ["saliency", "guided_backprop", "occlusion"])
def test_the_array_over_rest_is_the_one_that_the_command_writes(
    written: Path, served: dict[str, dict[str, Any]], picture: str, method: str
) -> None:
    found_CHW = array(served[picture][method]["array"])
    with np.load(written / Path(picture).stem / f"{method}.npz") as file:
        wanted_CHW = file["values_NCHW"][0]
    assert wanted_CHW.dtype == found_CHW.dtype == np.float32
    assert_same_map(found_CHW, wanted_CHW)


@pytest.mark.parametrize("picture", PICTURES)
def test_the_grid_of_drops_over_rest_is_the_one_that_the_command_writes(
    written: Path, served: dict[str, dict[str, Any]], picture: str
) -> None:
    found_RQ = array(served[picture]["occlusion"]["extras"]["grid_NRQ"])
    with np.load(written / Path(picture).stem / "occlusion.npz") as file:
        wanted_RQ = file["grid_NRQ"][0]
    # Tops at 0, 40, 80, 120 and, flush with the edge, 160.
    assert found_RQ.shape == wanted_RQ.shape == (5, 5)
    assert_same_map(found_RQ, wanted_RQ)


@pytest.mark.parametrize("picture", PICTURES)
def test_the_neighbours_over_rest_are_those_that_the_command_writes(
    written: Path, served: dict[str, dict[str, Any]], picture: str
) -> None:
    said = json.loads((written / Path(picture).stem / "reply.json").read_text())
    (wanted,) = [one["neighbours"] for one in said["explanations"] if one["id"] == "neighbours"]
    found = served[picture]["neighbours"]["neighbours"]
    assert [one["id"] for one in found] == [one["id"] for one in wanted]
    assert [one["distance"] for one in found] == pytest.approx([one["distance"] for one in wanted], rel=1e-5)
    assert all(0 < one["distance"] < 2 for one in found), "between vectors of length one"
