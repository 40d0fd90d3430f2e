"""Both clients on a live TorchServe: every refusal is reported alike, with its code, its place and what to do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_server import Connect, Live, photograph
from small_server import QUEUE, SMALL

from convlens.client import BaseClient, Client, FrontendError, GrpcClient, RemoteError, UnreachableError
from convlens.errors import ConvLensError, ServerError
from convlens.torchserve.server_config import free_ports
from convlens.types import Reply


def refused(ask: Callable[[], object], kind: type[ConvLensError] = RemoteError) -> Any:
    with pytest.raises(kind) as caught:
        ask()
    return caught.value


def test_a_request_that_cannot_be_honoured(connect: Connect) -> None:
    methods = ["saliency", {"method": "saliency", "target": "tigre cat"}]
    error = refused(lambda: connect().explain(photograph(), methods=methods, request_id="r-9"))
    assert type(error) is RemoteError
    assert (error.status, error.type, error.field) == (422, "TargetError", "methods.1.target")
    assert error.request_id == "r-9"
    assert "did you mean tiger cat" in error.message


def test_a_misspelt_option_is_named(connect: Connect) -> None:
    methods = ["saliency", {"method": "occlusion", "options": {"windw": 3}}]
    error = refused(lambda: connect().explain(photograph(), methods=methods))
    assert (error.status, error.field) == (422, "methods.1.options.windw")
    assert "did you mean window" in error.message


def test_bytes_that_are_no_picture(connect: Connect) -> None:
    error = refused(lambda: connect().predict(b"no picture"))
    assert (error.status, error.type) == (400, "ImageError")
    assert "JPEG" in error.message


def test_an_overlay_that_cannot_be(connect: Connect) -> None:
    error = refused(lambda: connect().overlay(photograph(), "neighbours"))
    assert (error.status, error.field) == (422, "methods")


@pytest.mark.parametrize(
    "given", [{"token": "wrong"}, {"token": ""}, {"token": None, "key_file": None}], ids=["wrong", "empty", "none"]
)
def test_a_wrong_or_missing_token(connect: Connect, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVLENS_TOKEN", raising=False)
    client = connect(**given)
    for ask in (lambda: client.predict(photograph()), lambda: client.explain(photograph()), client.ready):
        error = refused(ask, FrontendError)
        assert error.status == 400
        assert "key_file" in error.message
        assert "$CONVLENS_TOKEN" in error.message


def test_the_token_of_the_environment_opens(connect: Connect, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVLENS_TOKEN", live.server.token("inference"))
    assert connect(token=None, key_file=None).ready()


def test_a_key_file_is_read_anew_when_the_server_writes_it_anew(connect: Connect, live: Live, tmp_path: Path) -> None:
    copy = tmp_path / "key_file.json"
    copy.write_text(json.dumps({"inference": {"key": "stale"}}))
    client = connect(key_file=copy)
    refused(client.ready, FrontendError)
    copy.write_bytes(live.server.key_file.read_bytes())
    assert client.ready()


def test_the_token_is_in_no_message_no_repr_and_no_log(
    connect: Connect, live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = live.server.token("inference")
    client = connect(token=token)
    client.predict(photograph())
    error = refused(lambda: client.predict(b"x"))
    wrong = connect(token="sesame-open")
    denied = refused(lambda: wrong.predict(photograph()))
    said = f"{client!r} {vars(client)} {error!r} {wrong!r} {denied!r} {denied.message} {caplog.text}"
    assert token not in said
    assert "sesame-open" not in said


@pytest.mark.parametrize("given", [{"model": "nosuch"}, {"version": "9.9"}, {"model": "a/b?c=ü"}])
def test_a_model_or_version_that_is_not_there(connect: Connect, given: dict[str, Any]) -> None:
    error = refused(lambda: connect(**given).predict(photograph()), FrontendError)
    assert error.status == 404
    assert "name a model and a version" in error.message
    assert isinstance(error, ServerError)


def test_more_bytes_than_the_server_takes(connect: Connect) -> None:
    error = refused(lambda: connect().predict(bytes(40_000_000)), FrontendError)
    assert error.status == 413
    assert "smaller picture" in error.message


def test_an_answer_that_comes_too_late(connect: Connect) -> None:
    error = refused(lambda: connect(timeout_s=0.01).explain(photograph(), methods=["occlusion"]), ServerError)
    assert not isinstance(error, UnreachableError | RemoteError)
    assert "within 0.01 s; allow more by timeout_s" in error.message


def test_nobody_there() -> None:
    port = free_ports().inference
    for client in (Client(f"http://127.0.0.1:{port}", token="t"), GrpcClient(f"127.0.0.1:{port}", token="t")):
        with client:
            error = refused(lambda: client.predict(photograph()), UnreachableError)  # noqa: B023
            assert f"no answer from {'http://' if isinstance(client, Client) else ''}127.0.0.1:{port}" in error.message
            assert "is the server running?" in error.message
            assert not client.ready()


def flood(client: BaseClient) -> list[Reply | ConvLensError]:
    """Twice as many at once as the worker and its queue can hold."""
    crowd = 2 * (8 + QUEUE)
    slow = {"method": "smoothgrad", "options": {"samples": 20}}
    return list(client.explain_many([photograph("rocket.jpg")] * crowd, at_once=crowd, methods=[slow]))


def test_a_full_queue_says_to_come_back_later(connect_small: Connect) -> None:
    found = flood(connect_small(model=SMALL))
    turned_away = [one for one in found if isinstance(one, ConvLensError)]
    assert 0 < len(turned_away) < len(found)
    for error in turned_away:
        assert (type(error), error.status) == (FrontendError, 503)
        assert "its queue is full" in error.message


def test_with_retries_every_request_is_answered(connect_small: Connect) -> None:
    assert all(isinstance(one, Reply) for one in flood(connect_small(model=SMALL, retries=20)))
