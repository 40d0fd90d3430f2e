"""Forms and bodies are read as TorchServe's frontend reads them."""

from __future__ import annotations

import httpx
import pytest

from convlens.errors import RequestError
from convlens.rayserve.forms import body_parts

FORM = "multipart/form-data; boundary=XX"


def encoded(**files: object) -> tuple[bytes, str]:
    """As httpx writes a form, which is another implementation of RFC 7578."""
    request = httpx.Request("POST", "http://localhost/", files=files)  # type: ignore[arg-type]
    return request.read(), request.headers["content-type"]


def test_fields_and_files_keep_every_byte() -> None:
    data = bytes(range(256)) * 3 + b"\r\n--not the boundary\r\n"
    parts = body_parts(*encoded(data=("a cat.png", data, "image/png"), params=(None, b'{"target": "\xff"}')))
    assert parts == {"data": data, "params": b'{"target": "\xff"}'}


def test_a_file_that_is_typed_json_is_parsed_and_a_field_is_not() -> None:
    typed = {"a": ("a.json", b'{"topk": 2}', "application/json"), "b": (None, b'{"topk": 2}', "application/json")}
    assert body_parts(*encoded(**typed)) == {"a": {"topk": 2}, "b": b'{"topk": 2}'}


def test_of_a_repeated_name_the_last_part_counts() -> None:
    part = b'--XX\r\nContent-Disposition: form-data; name="data"\r\n\r\n'
    assert body_parts(part + b"one\r\n" + part + b"two\r\n--XX--\r\n", FORM) == {"data": b"two"}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_part_that_does_not_end_is_not_there(cut: int) -> None:
    whole = b'--XX\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + bytes(100) + b"\r\n--XX--\r\n"
    assert body_parts(whole[: -10 - cut], FORM) == {}


@pytest.mark.parametrize(("parts", "allowed"), [(1000, True), (1001, False), (100_000, False)])
def test_a_form_of_more_than_a_thousand_parts_is_refused(parts: int, allowed: bool) -> None:
    body = b'--XX\r\nContent-Disposition: form-data; name="p"\r\n\r\nx\r\n' * parts + b"--XX--\r\n"
    if allowed:
        assert body_parts(body, FORM) == {"p": b"x"}
        return
    with pytest.raises(RequestError, match="more than 1000 parts"):
        body_parts(body, FORM)


@pytest.mark.parametrize(
    ("content_type", "body", "wanted"),
    [
        ("application/json", b'{"data": "a"}', {"data": "a"}),
        ("Application/JSON; charset=utf-8", b"[1]", [1]),
        ("application/json", b"{no", b"{no"),
        ("application/json", b"[" * 100_000, b"[" * 100_000),
        ("text/plain", "é".encode(), "é"),
        ("text/plain", b"\xff", b"\xff"),
        ("image/png", b"\x89PNG", b"\x89PNG"),
        ("", b"{}", b"{}"),
        ("multipart/form-data", b"--XX", b"--XX"),
    ],
)
def test_a_body_is_an_object_a_text_or_bytes_by_its_type(content_type: str, body: bytes, wanted: object) -> None:
    assert body_parts(body, content_type) == {"body": wanted}
