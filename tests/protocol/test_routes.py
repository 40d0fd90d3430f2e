"""Which model a path asks, and for what: as TorchServe's routes and KServe's protocols say."""

from __future__ import annotations

import pytest

from convlens.protocol.routes import Route, parse_route


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/predictions/convlens", Route("convlens", "", False, "")),
        ("/predictions/convlens/1.0", Route("convlens", "1.0", False, "")),
        ("/predictions/convlens/1.0/saliency", Route("convlens", "1.0", False, "saliency")),
        ("/explanations/convlens", Route("convlens", "", True, "")),
        ("/explanations/convlens/1.0/grad_cam", Route("convlens", "1.0", True, "grad_cam")),
        ("/explanations/my%20net/1.0/grad_cam/", Route("my net", "1.0", True, "grad_cam")),
        ("/explanations/convlens?x=/1.0", Route("convlens", "", True, "")),
        ("/v1/models/convlens:predict", Route("convlens", "", False, "")),
        ("/v1/models/convlens:explain", Route("convlens", "", True, "")),
        ("/v2/models/convlens/infer", Route("convlens", "", False, "")),
        ("/v2/models/convlens/explain", Route("convlens", "", True, "")),
        ("/v2/models/convlens/versions/2.0/infer", Route("convlens", "2.0", False, "")),
    ],
)
def test_a_path_names_a_model_and_what_is_asked_of_it(path: str, route: Route) -> None:
    assert parse_route(path) == route


@pytest.mark.parametrize(
    "path",
    ["", "/", "/predictions", "/predictions/", "/explanations/a/1.0/grad_cam/more", "/v1/models/a", "/v1/models/a:b",
     "/v2/models/a", "/v2/models/a/ready", "/v2/models/a/versions/infer", "/xpredictions/a", "//[", "/ping"],
)  # fmt: skip
def test_other_paths_are_none_of_the_api_s(path: str) -> None:
    assert parse_route(path) is None
