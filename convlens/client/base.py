"""Which addresses are this machine's own.

What may be sent as a picture.

What a request may say beside its picture, and the text it becomes.

What a client can ask, whichever way the question travels.
"""

from __future__ import annotations

import ipaddress
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, Unpack

import numpy as np
from PIL import Image, ImageOps

from convlens import image
from convlens.client.errors import RemoteError
from convlens.client.retry import RetryPolicy
from convlens.errors import ConvLensError, RequestError, ServerError
from convlens.image.modes import to_rgb
from convlens.protocol.negotiation import JSON, PNG, SAFETENSORS, Media
from convlens.protocol.params import RequestParams
from convlens.protocol.responses import parse_reply
from convlens.types import Reply
from convlens.utils.concurrency import ordered_map


def is_loopback(host: str) -> bool:
    """A proxy for the outside, as the environment may name one, does not know these."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


Picture = str | PathLike[str] | bytes | Image.Image
PROBE_PNG = image.encode_png(np.full((8, 8, 3), 128, np.uint8))


def image_bytes(picture: Picture) -> bytes:
    """The bytes to send: a file's and encoded bytes as they are, an opened picture as PNG, upright by its EXIF.

    Raises ImageError for a file that cannot be read, ImageTooLargeError for one that no server takes.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        return image.encode_png(np.asarray(_upright(picture)))
    return image.read_bytes(picture)


def _upright(picture: Image.Image) -> Image.Image:
    """As RGB. The mode first: a turned copy has lost what a TIFF's tags say of its brightness."""
    picture.load()
    rgb = to_rgb(picture)
    rgb.info["exif"] = picture.getexif().tobytes()
    return ImageOps.exif_transpose(rgb)


_OURS = {
    "explain": "call explain, predict or overlay",
    "accept": "choose the form of the reply by the client's form",
    "sent_at": "the client says it by itself",
}


def checked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the client's default; RequestError for what the client itself says to the server."""
    for name, instead in _OURS.items():
        if name in asked:
            raise RequestError(f"{name} is not a parameter of this client: {instead}", field=name)
    return {"output": ["array"], **asked}


def params_json(params: Mapping[str, Any]) -> bytes:
    """JSON, or RequestError naming what JSON cannot hold."""
    try:
        return json.dumps(dict(params), allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise RequestError(f"the parameters cannot be written as JSON: {error}", field="params") from error


def _plain(value: object) -> object:
    """Mappings and sequences of any kind, and numpy's numbers."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__}")


Form = Literal["safetensors", "json"]
_MEDIA: Mapping[str, Media] = {"safetensors": SAFETENSORS, "json": JSON}
_PNG_STARTS = b"\x89PNG\r\n\x1a\n"


class ClientRequest(NamedTuple):
    """One question: ``explain`` asks for explanations, ``accept`` for the form of the answer."""

    picture: bytes
    params: Mapping[str, Any]
    explain: bool
    accept: Media


class BaseClient(ABC):
    """The methods of every client; one may be used by many threads at once. A subclass sends and closes.

    All of them raise RemoteError where the server refuses the request (with its code, its message and the field at
    fault), ServerError where there is no answer in time or none that can be read, ImageError for a picture that cannot
    be read here.
    """

    def __init__(self, *, patience: RetryPolicy, form: Form) -> None:
        if form not in _MEDIA:
            raise RequestError(f"no form {form!r}; there are: {', '.join(_MEDIA)}", field="form")
        self._patience = patience
        self._media = _MEDIA[form]

    def explain(self, picture: Picture, **asked: Unpack[RequestParams]) -> Reply:
        """Predictions and explanations of one picture; without ``methods`` those that the archive names.

        ``picture``: a path, the bytes of a picture file, or an opened picture. Maps are what the library gives:
        ``values_NCHW`` of shape (1, C, H, W), in float32 unless ``dtype`` says otherwise.
        """
        return parse_reply(self._ask(ClientRequest(image_bytes(picture), checked(asked), True, self._media)))

    def predict(
        self, picture: Picture, topk: int = 5, *, deadline_ms: float | None = None, request_id: str = ""
    ) -> Reply:
        """The ``topk`` likeliest classes alone, the likeliest first."""
        params = _given(topk=topk, deadline_ms=deadline_ms, request_id=request_id)
        return parse_reply(self._ask(ClientRequest(image_bytes(picture), params, False, JSON)))

    def overlay(
        self,
        picture: Picture,
        method: str,
        *,
        options: Mapping[str, Any] | None = None,
        target: int | str | Mapping[str, Any] | None = None,
        kind: Literal["overlay", "heatmap"] = "overlay",
        size: Literal["model", "original"] = "model",
        deadline_ms: float | None = None,
        request_id: str = "",
    ) -> bytes:
        """One map as a PNG file: laid over the picture, or alone as a heatmap."""
        methods = [{"method": method, "options": dict(options or {})}]
        params = _given(target=target, size=size, deadline_ms=deadline_ms, request_id=request_id)
        asked = {"methods": methods, "output": [kind], **params}
        body = self._ask(ClientRequest(image_bytes(picture), asked, True, PNG))
        if not body.startswith(_PNG_STARTS):
            raise ServerError(f"the answer is no PNG, but starts with {body[:40]!r}; is this a ConvLens server?")
        return body

    def explain_many(
        self, pictures: Iterable[Picture], *, at_once: int = 8, **params: Unpack[RequestParams]
    ) -> Iterator[Reply | ConvLensError]:
        """For each image, in order, its reply or its error as a value; up to ``at_once`` requests run at a time.

        Images are taken as they can be sent: there may be any number of them. What is still to be sent when the caller
        stops is not sent. Raises RequestError for an ``at_once`` below 1.
        """
        if at_once < 1:
            raise RequestError(f"at_once={at_once} sends nothing; use 1 or more")

        def explain_one(picture: Picture) -> Reply | ConvLensError:
            try:
                return self.explain(picture, **params)
            except ConvLensError as error:
                return error

        # Twice as many as threads, so that none idles while the caller looks at a reply.
        return ordered_map(explain_one, pictures, workers=at_once, ahead=2 * at_once)

    def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the model answers, by a tiny inference: a server says that it is up before its models are.

        Raises RemoteError for what waiting will not mend, such as a wrong token or a model that is not there.
        """
        try:
            self._send(ClientRequest(PROBE_PNG, {"topk": 1}, False, JSON), timeout_s=timeout_s)
        except RemoteError as error:
            if error.status < 500:
                raise
            return False
        except ServerError:
            return False
        return True

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def _send(self, message: ClientRequest, *, timeout_s: float) -> bytes:
        """The body of the answer, or the error that it is."""

    def _ask(self, message: ClientRequest) -> bytes:
        return self._patience.ask(lambda left_s: self._send(message, timeout_s=left_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value not in (None, "")}
