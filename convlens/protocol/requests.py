"""What arrives at a server's door, in any client's style -> a Request. Knows bodies and headers, but no server."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from convlens import image
from convlens.errors import ImageError, MediaTypeError, NotAcceptableError, RequestError, near_matches
from convlens.protocol.kserve import PLAIN, Envelope, kserve_version, unwrap_body
from convlens.protocol.negotiation import JSON, NPZ, PNG, SAFETENSORS, Media, negotiate_media_type
from convlens.protocol.params import Output, Params, field_prefix, parse_params

_PARTS = ("data", "params")
_OUTPUT: dict[Media, list[Output]] = {PNG: ["overlay"], SAFETENSORS: ["array"], NPZ: ["array"]}
_LONGEST = 100  # of a name that is quoted


@dataclass(frozen=True)
class Request:
    """A decoded image (RGB) and its parameters.

    ``sent_at`` is when the client sent it, in seconds since 1970, None where the client does not say.
    """

    picture: Image.Image
    params: Params
    sent_at: float | None = None


@dataclass(frozen=True)
class ApiRequest:
    """What one message asks: of one picture, or of each picture of a KServe body.

    ``media`` is the form of the answer, ``envelope`` the wrapping of its JSON.
    """

    requests: tuple[Request, ...]
    media: Media = JSON
    envelope: Envelope = PLAIN


def parse_request(
    parts: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    explain: bool = False,
    path_method: str = "",
    limits: image.Limits | None = None,
) -> ApiRequest:
    """What these body parts ask.

    ``parts`` is either ``{"body": …}`` alone with the whole body (picture bytes, or the object of a JSON body, which
    may be KServe's), or the fields ``data`` and ``params`` of a form or map. ``explain`` asks for explanations,
    ``path_method`` names one in the URL's path. Raises ImageError (400), NotAcceptableError (406), ImageTooLargeError
    (413), MediaTypeError (415) or RequestError (422) saying what to send instead.
    """
    content_type = _header(headers, "content-type").partition(";")[0].strip().lower()
    if content_type == "application/x-www-form-urlencoded":  # curl's --data-binary; decoded, its parts are rubble
        raise MediaTypeError(
            "this content type destroys pictures on their way; send the file by -T cat.jpg or -F data=@cat.jpg"
        )
    if set(parts) == {"body"}:
        parts = _whole_body(parts["body"], content_type)
    if kserve_version(parts):
        envelope, pictures = unwrap_body(parts)
    else:
        envelope, pictures = PLAIN, [("", dict(parts))]
    route = _Route(explain, path_method, _header(headers, "accept"), _sent_at(_header(headers, "x-request-start")))
    requests = []
    for place, one in pictures:
        with field_prefix(place):
            requests.append(_request(one, route, limits or image.Limits()))
    media = requests[0].params.accept or JSON
    if envelope.version and media != JSON:
        raise NotAcceptableError(f"a KServe body is answered in {JSON} only", field="accept")
    return ApiRequest(tuple(requests), media, envelope)


@dataclass(frozen=True)
class _Route:
    """What the URL and the headers say, beside the body."""

    explain: bool
    method: str
    accept: str
    sent_at: float | None


def _request(parts: Mapping[str, Any], route: _Route, limits: image.Limits) -> Request:
    unknown = [str(name)[:_LONGEST] for name in parts if name not in _PARTS]
    if unknown:
        hint = near_matches(unknown[0], _PARTS) or ";"
        raise RequestError(f"unknown part {unknown[0]!r}{hint} known parts: data, params", field=unknown[0])
    if "data" not in parts:
        raise RequestError(
            "no picture in the request; send it as the body (-T cat.jpg) or as the part 'data'", field="data"
        )
    params = _with_route(_params(parts.get("params")), route)
    picture = image.decode(_bytes(parts["data"]), limits=limits)
    return Request(picture, params, params.sent_at or route.sent_at)


def _sent_at(header: str) -> float | None:
    """Seconds since 1970 of an X-Request-Start header, as proxies set it: t=SECONDS, or in milli- or microseconds.

    None where it is none: a proxy's mistake is not the client's.
    """
    try:
        stamp = float(header.strip().removeprefix("t="))
    except ValueError:
        return None
    for unit in (1.0, 1e3, 1e6):
        if 1e9 <= stamp / unit < 1e10:  # 2001 to 2286
            return stamp / unit
    return None


def _whole_body(body: Any, content_type: str) -> Mapping[str, Any]:
    if content_type == "application/json" and isinstance(body, bytes | bytearray):
        body = _unparsed_json(body)
    if isinstance(body, dict):
        return body
    if isinstance(body, list):
        raise RequestError(
            'a JSON body is an object like {"data": {"b64": "…"}, "params": {…}}, not a list', field="data"
        )
    if content_type == "application/json":
        raise ImageError('the body says it is JSON, but is no JSON object like {"data": {"b64": "…"}, "params": {…}}')
    if isinstance(body, str) or content_type.startswith("text/"):
        raise MediaTypeError("the body is text; send the picture itself by -T cat.jpg or -F data=@cat.jpg")
    return {"data": body}


def _unparsed_json(body: bytes | bytearray) -> Any:
    """What TorchServe left unparsed: a byte order mark, a content type in capitals, or no JSON at all (None)."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _params(given: Any) -> dict[str, Any]:
    """The parameters as an object, from JSON text where they come as such."""
    if given is None:
        return {}
    if isinstance(given, bytes | bytearray | str):
        given = _parsed(given)
    if not isinstance(given, dict):
        raise RequestError(f"params must be a JSON object, got {type(given).__name__}", field="params")
    return given


def _parsed(text: bytes | bytearray | str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"params is not valid JSON: {str(error)[:200]}", field="params") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _with_route(given: dict[str, Any], route: _Route) -> Params:
    """The parameters together with what the URL and the headers ask for."""
    if route.method:
        if given.get("methods") is not None:
            raise RequestError("methods are named in the path and in params; name them in one place", field="methods")
        given = given | {"methods": [route.method]}
    params = parse_params({"explain": True} | given if route.explain else given)
    media = params.accept or negotiate_media_type(route.accept)
    # Nobody wants to wait for pictures that go into no picture file, or for arrays that go into no file of arrays.
    output = params.output if "output" in params.model_fields_set else _OUTPUT.get(media, params.output)
    return params.model_copy(update={"accept": media, "output": output})


def _bytes(data: Any) -> bytes:
    """The picture's bytes: as they came, or from {"b64": …} or base64 text."""
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    text = data.get("b64") if isinstance(data, dict) and set(data) == {"b64"} else data
    if not isinstance(text, str):
        raise RequestError('data must be picture bytes, base64 text or {"b64": "…"}', field="data")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"data is not valid base64 ({error}); encode the picture file anew, or send it as it is by -T cat.jpg",
            field="data",
        ) from error


def _header(headers: Mapping[str, str], wanted: str) -> str:
    """Header names are case-insensitive, whatever the server makes of them."""
    return next((str(value) for name, value in headers.items() if name.lower() == wanted), "")
