"""What arrives at a server's door, in any client's style, as requests. Knows bodies and headers, but no server."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from convlens import image
from convlens.errors import (
    ImageError,
    ImageTooLargeError,
    MediaTypeError,
    NotAcceptableError,
    RequestError,
    near_matches,
)
from convlens.image.codec import OnBlock
from convlens.protocol.deadline import deadline_of
from convlens.protocol.kserve import NO_ENVELOPE, Envelope, is_kserve_body, unwrap_body
from convlens.protocol.negotiation import JSON, NPZ, PNG, SAFETENSORS, Media, negotiate_media_type
from convlens.protocol.params import Output, Params, field_prefix, parse_params
from convlens.protocol.tensors import LENGTH_HEADER, attach_tensors
from convlens.types import no_op

_PARTS = ("data", "params")
_MAX_NAME = 100  # characters of a name that is quoted
_LIKE = '{"data": {"b64": "…"}, "params": {…}}'
# Nobody wants to wait for overlays that go into no file of arrays, or for arrays that go into no image file.
_DEFAULT_OUTPUT: dict[Media, list[Output]] = {PNG: ["overlay"], SAFETENSORS: ["array"], NPZ: ["array"]}


@dataclass(frozen=True)
class Request:
    """A decoded image, RGB or of the model's channels, and its parameters.

    ``sent_at`` is when the client sent it, in seconds since 1970, None where the client does not say; ``arrived`` when
    its reading began by time.perf_counter(), None where it was not read here.
    """

    image: image.Picture
    params: Params
    sent_at: float | None = None
    arrived: float | None = None


@dataclass(frozen=True)
class ApiRequest:
    """One call of the API: a request for one image, or for each image of a KServe body.

    ``media`` is the form of the answer, ``envelope`` the wrapping of its JSON.
    """

    requests: tuple[Request, ...]
    media: Media = JSON
    envelope: Envelope = NO_ENVELOPE


@dataclass(frozen=True)
class _Route:
    """What the URL and the headers add to the body, how many channels the model takes, and when reading began."""

    explain: bool
    method: str
    accept: str
    sent_at: float | None
    channels: int
    arrived: float
    clock: float
    on_block: OnBlock


def parse_request(
    parts: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    explain: bool = False,
    path_method: str = "",
    limits: image.Limits | None = None,
    channels: int = 3,
    on_block: OnBlock = no_op,
) -> ApiRequest:
    """The call that these body parts and headers make.

    ``parts`` is either ``{"body": …}`` alone with the whole body (image bytes, or the object of a JSON body, which
    may be KServe's), or the fields ``data`` and ``params`` of a form or map. ``explain`` asks for explanations,
    ``path_method`` names one in the URL's path. ``channels`` are the model's: images of other channels than RGB are
    TIFF or npy files. The images of one body share the limit on pixels. Calls ``on_block`` now and then while it reads
    an image; a ConvLensError from there ends it. Raises ImageError (400), NotAcceptableError (406), ImageTooLargeError
    (413), MediaTypeError (415) or RequestError (422) saying what to send instead, and DeadlineError (504) where the
    deadline passes meanwhile.
    """
    envelope, images, route = _opened(
        parts, headers, explain=explain, path_method=path_method, channels=channels, on_block=on_block
    )
    limits = limits or image.Limits()
    requests = list[Request]()
    for place, image_parts in images:
        used = sum(request.image.width * request.image.height for request in requests)
        with field_prefix(place):
            requests.append(_request(image_parts, route, _remaining(limits, used)))
    media = requests[0].params.accept or JSON
    if envelope.version and media != JSON:
        raise NotAcceptableError(f"a KServe body is answered in {JSON} only", field="accept")
    return ApiRequest(tuple(requests), media, envelope)


def requested_params(
    parts: Mapping[str, Any], headers: Mapping[str, str], *, explain: bool = False, path_method: str = ""
) -> list[Params]:
    """The parameters of each image of a call, by what ``parse_request`` takes; no image is decoded.

    Raises as it does.
    """
    _, images, route = _opened(parts, headers, explain=explain, path_method=path_method, channels=0, on_block=no_op)
    return [_with_route(_params_object(image_parts.get("params")), route) for _, image_parts in images]


def _opened(
    parts: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    explain: bool,
    path_method: str,
    channels: int,
    on_block: OnBlock,
) -> tuple[Envelope, list[tuple[str, dict[str, Any]]], _Route]:
    """The envelope of a call, its images' places and parts, and what comes from elsewhere than the body."""
    arrived, clock = time.perf_counter(), time.time()
    content_type = _header(headers, "content-type").partition(";")[0].strip().lower()
    if content_type == "application/x-www-form-urlencoded":  # curl's --data-binary; decoded, its parts are rubble
        raise MediaTypeError(
            "this content type destroys images on their way; send the file by -T cat.jpg or -F data=@cat.jpg"
        )
    if (encoding := _header(headers, "content-encoding").strip().lower()) not in ("", "identity"):
        raise MediaTypeError(f"a body in the content encoding {encoding[:40]!r} is not unpacked; send it as it is")
    if set(parts) == {"body"}:
        parts = _whole_body(parts["body"], content_type, _header(headers, LENGTH_HEADER.lower()))
    envelope, images = unwrap_body(parts)
    sent_at = _sent_at(_header(headers, "x-request-start"))
    accept = _header(headers, "accept")
    return envelope, images, _Route(explain, path_method, accept, sent_at, channels, arrived, clock, on_block)


def _request(parts: Mapping[str, Any], route: _Route, limits: image.Limits) -> Request:
    unknown = [str(name)[:_MAX_NAME] for name in parts if name not in _PARTS]
    if unknown:
        hint = near_matches(unknown[0], _PARTS) or ";"
        raise RequestError(f"unknown part {unknown[0]!r}{hint} known parts: data, params", field=unknown[0])
    if "data" not in parts:
        raise RequestError(
            "no image in the request; send it as the body (-T cat.jpg) or as the part 'data'", field="data"
        )
    params = _with_route(_params_object(parts.get("params")), route)
    sent_at = params.sent_at or route.sent_at
    deadline = deadline_of(params, sent_at, started=route.arrived, clock=route.clock)

    def on_block() -> None:
        route.on_block()
        deadline.require(0.0)

    data = _image_bytes(parts["data"])
    decoded = image.decode_channels(data, route.channels, limits=limits, on_block=on_block)
    return Request(decoded, params, sent_at, route.arrived)


def _remaining(limits: image.Limits, used: int) -> image.Limits:
    """The limits for the next image of a body whose images so far have ``used`` pixels."""
    if used >= limits.pixels:
        raise ImageTooLargeError(
            f"the images before this one have {used} pixels; at most {limits.pixels} are allowed in one body: send "
            "fewer or smaller ones at a time"
        )
    return replace(limits, pixels=limits.pixels - used)


def _whole_body(body: Any, content_type: str, header_length: str) -> Mapping[str, Any]:
    if isinstance(body, bytes | bytearray):
        if header_length:
            return attach_tensors(body, header_length)
        if content_type == "application/json":
            body = _unparsed_json(body)
        elif is_kserve_body(body) and (parsed := _unparsed_json(body)) is not None:
            body = parsed  # Triton's client names no content type
    if isinstance(body, dict):
        return body
    if isinstance(body, list):
        raise RequestError(f"a JSON body is an object like {_LIKE}, not a list", field="data")
    if content_type == "application/json":
        raise ImageError(f"the body says it is JSON, but is no JSON object like {_LIKE}")
    if isinstance(body, str) or content_type.startswith("text/"):
        raise MediaTypeError("the body is text; send the image itself by -T cat.jpg or -F data=@cat.jpg")
    return {"data": body}


def _unparsed_json(body: bytes | bytearray) -> Any:
    # TorchServe hands over as bytes what it does not parse: JSON with a byte order mark or with a content type in
    # capitals, and what is no JSON at all (None here).
    try:
        return _strict_json(body)
    except (ValueError, RecursionError):
        return None


def _image_bytes(data: Any) -> bytes:
    """The encoded image as it came, or from {"b64": …} or base64 text."""
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    text = data.get("b64") if isinstance(data, dict) and set(data) == {"b64"} else data
    if not isinstance(text, str):
        raise RequestError('data must be image bytes, base64 text or {"b64": "…"}', field="data")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"data is not valid base64 ({error}); encode the image file anew, or send it as it is by -T cat.jpg",
            field="data",
        ) from error


def _params_object(params: Any) -> dict[str, Any]:
    """The parameters as an object, parsed where they come as JSON text."""
    if params is None:
        return {}
    if isinstance(params, bytes | bytearray | str):
        try:
            params = _strict_json(params)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"params is not valid JSON: {str(error)[:200]}", field="params") from error
    if not isinstance(params, dict):
        raise RequestError(f"params must be a JSON object, got {type(params).__name__}", field="params")
    return params


def _strict_json(text: bytes | bytearray | str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")  # NaN and Infinity, which Python's parser would take


def _with_route(params_object: dict[str, Any], route: _Route) -> Params:
    """The parameters together with what the URL and the headers ask for."""
    if route.method:
        if params_object.get("methods") is not None:
            raise RequestError("methods are named in the path and in params; name them in one place", field="methods")
        params_object = params_object | {"methods": [route.method]}
    params = parse_params({"explain": True} | params_object if route.explain else params_object)
    media = params.accept or negotiate_media_type(route.accept)
    output = params.output if "output" in params.model_fields_set else _DEFAULT_OUTPUT.get(media, params.output)
    return params.model_copy(update={"accept": media, "output": output})


def _header(headers: Mapping[str, str], lower_name: str) -> str:
    # HTTP's header names are case-insensitive, those that TorchServe hands over are not.
    return next((str(value) for name, value in headers.items() if name.lower() == lower_name), "")


def _sent_at(header: str) -> float | None:
    """Seconds since 1970 of an X-Request-Start header, as proxies set it: t=SECONDS, or in milli- or microseconds."""
    try:
        stamp = float(header.strip().removeprefix("t="))
    except ValueError:
        return None  # a proxy's mistake is not the client's
    # The header says no unit, but only one of them makes a time from 2001 to 2286.
    for unit in (1.0, 1e3, 1e6):
        if 1e9 <= stamp / unit < 1e10:
            return stamp / unit
    return None
