"""Which deployment a request is for, decided by its parameters before any image is decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import engines
import pytest

pytest.importorskip("ray.serve", reason="the optional package ray[serve]")

from convlens.errors import ConvLensError
from convlens.rayserve.roles import role_for

HEAVY = {"methods": [{"method": "occlusion", "options": {"window": 4, "stride": 2}}]}
CASES: list[tuple[Any, dict[str, str], str]] = [
    ({}, {}, "quick"),
    ({"methods": ["saliency", "grad_cam"]}, {}, "quick"),
    (HEAVY, {}, "sweeps"),
    ({"methods": ["saliency"], "evaluate": ["deletion"]}, {}, "sweeps"),
    ({"neighbours": 3}, {}, "neighbours"),
    ({"neighbours": 3, "methods": ["saliency"]}, {}, "quick"),
    ({}, {"explain": "True"}, "quick"),  # of 24 pixels a side the default occlusion hides one window
    ({}, {"explain": "True", "url_path": "saliency"}, "quick"),
    ({}, {"url_path": "neighbours"}, "neighbours"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    gallery = engines.small_gallery(Path(tmp_path_factory.mktemp("gallery")) / "g")
    return engines.engine(gallery=gallery)


@pytest.mark.parametrize(("params", "headers", "role"), CASES, ids=str)
def test_a_request_goes_to_the_deployment_for_its_work(
    engine: Any, params: Any, headers: dict[str, str], role: str
) -> None:
    parts = {"data": b"no image at all", "params": json.dumps(params)}
    assert role_for(parts, headers, engine) == role


def test_one_sweep_among_the_images_of_a_body_makes_it_a_sweep(engine: Any) -> None:
    body = {"instances": ["AAAA", {"data": "AAAA", "params": HEAVY}]}
    assert role_for({"body": body}, {"content-type": "application/json"}, engine) == "sweeps"


def test_parameters_that_cannot_be_read_raise_as_in_the_handler(engine: Any) -> None:
    with pytest.raises(ConvLensError, match="unknown key"):
        role_for({"data": b"", "params": '{"topK": 1}'}, {}, engine)
