"""Which form of reply an Accept header asks for; expectations by RFC 9110, section 12.5.1."""

from __future__ import annotations

import pytest

from convlens.errors import NotAcceptableError
from convlens.protocol.negotiation import negotiate_media_type

JSON, PNG = "application/json", "image/png"
SAFETENSORS, NPZ = "application/vnd.safetensors", "application/x-npz"
CHROME_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
CHROME_IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", JSON),
        ("  ", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (JSON, JSON),
        (PNG, PNG),
        ("image/*", PNG),
        ("IMAGE/PNG", PNG),
        (SAFETENSORS, SAFETENSORS),
        (NPZ, NPZ),
        (f"{NPZ}; version=1", NPZ),
        (f"{JSON};q=0.4, {PNG};q=0.5", PNG),
        (f"{PNG}; q=0.5, {JSON}; q=0.5", PNG),  # equal qualities: the order in the header
        (f"text/html, {NPZ};q=0.1", NPZ),
        (f"{PNG};q=0, */*;q=0.1", JSON),
        (CHROME_PAGE, JSON),
        (CHROME_IMG, PNG),
    ],
)
def test_the_best_form_that_there_is(accept: str, media: str) -> None:
    assert negotiate_media_type(accept) == media


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", f"{PNG};q=0", f"{JSON};q=none", ",", "json", "\0"])
def test_a_form_that_there_is_not_is_refused_with_those_there_are(accept: str) -> None:
    with pytest.raises(NotAcceptableError) as caught:
        negotiate_media_type(accept)
    assert (caught.value.status, caught.value.field) == (406, "accept")
    assert all(media in caught.value.message for media in (JSON, PNG, SAFETENSORS, NPZ))
