"""A body that fits travels within its request; what is larger, or breaks off, comes as it came."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the optional package ray[serve]")

from convlens.rayserve.upload import BODY, CarriedBody, middlewares

GONE = {"type": "http.disconnect"}


def piece(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def seen_by_the_application(*sent: dict[str, Any], kind: str = "http") -> tuple[dict[str, Any], list[Any]]:
    """The scope and all messages, up to the disconnect."""
    left, seen, scopes = iter(sent), list[Any](), list[Any]()

    async def receive() -> Any:
        return next(left)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        while not seen or seen[-1] != GONE:
            seen.append(await receive())

    async def send(message: Any) -> None:
        raise AssertionError("nothing is sent here")

    asyncio.run(CarriedBody(app)({"type": kind}, receive, send))
    return scopes[0], seen


@pytest.mark.parametrize("pieces", [[b"picture"], [b"pic", b"ture"], [b"pic", b"tur", b"e", b""]], ids=len)
def test_a_body_in_any_number_of_pieces_is_in_the_scope_and_does_not_come_again(pieces: list[bytes]) -> None:
    sent = [piece(one, more=True) for one in pieces[:-1]] + [piece(pieces[-1])]
    scope, seen = seen_by_the_application(*sent, GONE)
    assert scope[BODY] == b"picture"
    assert seen == [piece(b""), GONE]


def test_a_request_without_a_body_carries_an_empty_one() -> None:
    scope, _ = seen_by_the_application({"type": "http.request"}, GONE)
    assert scope[BODY] == b""


def test_a_large_body_comes_in_the_pieces_that_it_was_sent_in() -> None:
    sent = [piece(bytes(3_000_000), more=True), piece(bytes(3_000_000), more=True), piece(b"end")]
    scope, seen = seen_by_the_application(*sent, GONE)
    assert BODY not in scope
    assert seen == [*sent, GONE]


def test_an_upload_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    scope, seen = seen_by_the_application(piece(b"pic", more=True), GONE)
    assert BODY not in scope
    assert seen == [piece(b"pic", more=True), GONE]


def test_what_is_no_request_passes_untouched() -> None:
    scope, _ = seen_by_the_application(GONE, kind="lifespan")
    assert scope == {"type": "lifespan"}


def test_serve_finds_the_middleware_under_its_name() -> None:
    assert [each.cls for each in middlewares()] == [CarriedBody]
