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
        # As TorchServe passes it on, so that the refusal names the method.
        ("/explanations/a/1.0/grad_cam/more", Route("a", "1.0", True, "grad_cam/more")),
        ("/predictions/a%2Fb", Route("a/b", "", False, "")),
    ],
)
def test_a_path_names_a_model_and_what_is_asked_of_it(path: str, route: Route) -> None:
    assert parse_route(path) == route


@pytest.mark.parametrize(
    "path",
    ["", "/predictions", "/predictions/", "/predictions//", "/v1/models/a:b", "/v1/models/", "/v2/models", "/v2/",
     "/v2/models/a/versions", "/v2/health", "/v2/health/well", "/xpredictions/a", "//[", "/ping/more", "/Ping"],
)  # fmt: skip
def test_other_paths_are_none_of_the_api_s(path: str) -> None:
    assert parse_route(path) is None


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/models/a", Route("a", resource="ready")),
        ("/v2/models/a/ready", Route("a", resource="ready")),
        ("/v2/models/a/versions/2.0/ready", Route("a", "2.0", resource="ready")),
        ("/v2/models/a", Route("a", resource="metadata")),
        ("/v2/models/my%20net/versions/2.0?x", Route("my net", "2.0", resource="metadata")),
        ("/", Route(resource="page")),
        ("/ping", Route(resource="ping")),
        ("/metrics?name=x", Route(resource="metrics")),
        ("/v1/models", Route(resource="models")),
        ("/v2", Route(resource="server")),
        ("/v2/health/live", Route(resource="server_live")),
        ("/v2/health/ready", Route(resource="server_ready")),
    ],
)
def test_other_paths_describe_a_model_or_the_server(path: str, route: Route) -> None:
    assert parse_route(path) == route


@pytest.mark.parametrize("path", ["/predictions/a", "/v2/models/a/explain", "/v1/models/a:predict"])
def test_an_answer_takes_every_verb_that_sends_a_body(path: str) -> None:
    assert {"POST", "PUT"} <= set(parse_route(path).verbs)  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["/", "/ping", "/v2", "/v2/models/a", "/v1/models/a", "/v2/health/ready"])
def test_what_describes_is_only_read(path: str) -> None:
    assert set(parse_route(path).verbs) == {"GET", "HEAD"}  # type: ignore[union-attr]
