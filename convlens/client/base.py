"""What every client offers, whichever way its requests travel, and the images and parameters that it sends."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, Unpack

import numpy as np
from numpy.typing import NDArray
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

ImageSource = str | PathLike[str] | bytes | Image.Image | NDArray[Any]
Form = Literal["safetensors", "json"]

PROBE_PNG = image.encode_png(np.full((8, 8, 3), 128, np.uint8))
_MEDIA: Mapping[str, Media] = {"safetensors": SAFETENSORS, "json": JSON}
_CHANNELS = re.compile(r"the model takes (\d{1,4}) channels")  # how images of others are refused
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Parameters of a request that the client itself sets, and what its caller does instead.
_SET_BY_CLIENT = {
    "explain": "call explain, predict or overlay",
    "accept": "choose the form of the reply by the client's form",
    "sent_at": "the client sends the time itself",
}


class ClientRequest(NamedTuple):
    """One request, however it is sent: ``explain`` asks for explanations, ``accept`` for the form of the answer."""

    image: bytes
    params: Mapping[str, Any]
    explain: bool
    accept: Media


class BaseClient(ABC):
    """The methods of every client, safe to call from many threads at once. A subclass sends and closes.

    All methods raise RemoteError where the server refuses the request (with its code, its message and the field at
    fault), ServerError where no readable answer comes in time, ImageError for an image that cannot be read here.
    """

    def __init__(self, *, retry: RetryPolicy, form: Form) -> None:
        if form not in _MEDIA:
            raise RequestError(f"no form {form!r}; there are: {', '.join(_MEDIA)}", field="form")
        self._retry = retry
        self._media = _MEDIA[form]

    def explain(self, picture: ImageSource, **params: Unpack[RequestParams]) -> Reply:
        """Predictions and explanations of one image; without ``methods`` those that the archive names.

        ``picture``: a path, the bytes of an image file, an opened Pillow image, or an array (H, W, C) for a model of
        other channels than RGB. Maps are what the library gives:
        ``values_NCHW`` of shape (1, C, H, W), in float32 unless ``dtype`` says otherwise.
        """
        return parse_reply(self._request(picture, _checked(params), explain=True, accept=self._media))

    def predict(
        self, picture: ImageSource, topk: int = 5, *, deadline_ms: float | None = None, request_id: str = ""
    ) -> Reply:
        """The ``topk`` most probable classes alone, the most probable first."""
        params = _without_defaults(topk=topk, deadline_ms=deadline_ms, request_id=request_id)
        return parse_reply(self._request(picture, params, explain=False, accept=JSON))

    def overlay(
        self,
        picture: ImageSource,
        method: str,
        *,
        options: Mapping[str, Any] | None = None,
        target: int | str | Mapping[str, Any] | None = None,
        kind: Literal["overlay", "heatmap"] = "overlay",
        size: Literal["model", "original"] = "model",
        deadline_ms: float | None = None,
        request_id: str = "",
    ) -> bytes:
        """One map as a PNG file: laid over the image, or alone as a heatmap."""
        methods = [{"method": method, "options": dict(options or {})}]
        params = _without_defaults(target=target, size=size, deadline_ms=deadline_ms, request_id=request_id)
        body = self._request(picture, {"methods": methods, "output": [kind], **params}, explain=True, accept=PNG)
        if not body.startswith(_PNG_SIGNATURE):
            raise ServerError(f"the answer is no PNG, but starts with {body[:40]!r}; is this a ConvLens server?")
        return body

    def explain_many(
        self, pictures: Iterable[ImageSource], *, at_once: int = 8, **params: Unpack[RequestParams]
    ) -> Generator[Reply | ConvLensError]:
        """For each image, in order, its reply or its error as a value; ``at_once`` requests run at a time.

        Images are taken as they can be sent: there may be any number of them. What is still to be sent when the caller
        stops is not sent. Raises RequestError for an ``at_once`` below 1.
        """
        if at_once < 1:
            raise RequestError(f"at_once={at_once} sends nothing; use 1 or more")

        def explain_one(picture: ImageSource) -> Reply | ConvLensError:
            try:
                return self.explain(picture, **params)
            except ConvLensError as error:
                return error

        # Twice as many as threads, so that none idles while the caller looks at a reply.
        return ordered_map(explain_one, pictures, workers=at_once, ahead=2 * at_once)

    def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the model answers a tiny inference.

        Raises RemoteError for what waiting will not mend, such as a wrong token or a model that is not there.
        """
        # TorchServe's /ping says 200 before a model is loaded.
        try:
            self._probe(PROBE_PNG, timeout_s=timeout_s)
        except RemoteError as error:
            if error.status < 500:
                raise
            return False
        except ServerError:
            return False
        return True

    def _probe(self, data: bytes, *, timeout_s: float) -> None:
        """Asks for one class of the image or, where the model takes other channels, of as many as it names."""
        try:
            self._send(ClientRequest(data, {"topk": 1}, explain=False, accept=JSON), timeout_s=timeout_s)
        except RemoteError as error:
            named = _CHANNELS.search(error.message)
            if named is None or data != PROBE_PNG:
                raise
            grey_HWC = np.full((8, 8, int(named[1])), 128, np.uint8)
            self._probe(image.encode_npy(grey_HWC), timeout_s=timeout_s)

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def _send(self, request: ClientRequest, *, timeout_s: float) -> bytes:
        """The body of the answer; raises the error that the answer is."""

    # Reading and encoding the image comes before the time runs: only the wait for the server counts.
    def _request(self, source: ImageSource, params: Mapping[str, Any], *, explain: bool, accept: Media) -> bytes:
        request = ClientRequest(image_bytes(source), params, explain, accept)
        return self._retry.run(lambda remaining_s: self._send(request, timeout_s=remaining_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def image_bytes(source: ImageSource) -> bytes:
    """The bytes to send: a file's and encoded bytes as they are, an opened image as PNG, upright by its EXIF, an array
    as .npy.

    Raises ImageError for a file that cannot be read, ImageTooLargeError for one that no server takes.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):
        return image.encode_png(np.asarray(_upright_rgb(source)))
    if isinstance(source, np.ndarray):
        return image.encode_npy(source)
    return image.read_bytes(source)


def _upright_rgb(opened: Image.Image) -> Image.Image:
    opened.load()
    # The mode first: a turned copy has lost what a TIFF's tags say of its brightness.
    rgb = to_rgb(opened)
    rgb.info["exif"] = opened.getexif().tobytes()
    return ImageOps.exif_transpose(rgb)


def params_json(params: Mapping[str, Any]) -> bytes:
    """The parameters as JSON; RequestError naming what JSON cannot hold."""
    try:
        return json.dumps(dict(params), allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise RequestError(f"the parameters cannot be written as JSON: {error}", field="params") from error


def _plain(value: object) -> object:
    # Called for what json does not know: mappings and sequences of other kinds, and numpy's numbers.
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__}")


def _checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the client's own default; RequestError for a parameter that the client sets itself."""
    for name, instead in _SET_BY_CLIENT.items():
        if name in params:
            raise RequestError(f"{name} is not a parameter of this client: {instead}", field=name)
    return {"output": ["array"], **params}


def _without_defaults(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value not in (None, "")}
