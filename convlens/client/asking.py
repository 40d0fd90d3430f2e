"""What a client can ask, whichever way the question travels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, Unpack

from convlens.client.asked import Asked, checked
from convlens.client.errors import RemoteError
from convlens.client.many import in_order
from convlens.client.pictures import GREY, Picture, encoded
from convlens.client.retrying import Patience
from convlens.errors import ConvLensError, RequestError, ServerError
from convlens.service.media import JSON, PNG, SAFETENSORS, Media
from convlens.service.reading import from_body
from convlens.types import Reply

Form = Literal["safetensors", "json"]
_MEDIA: Mapping[str, Media] = {"safetensors": SAFETENSORS, "json": JSON}
_PNG_STARTS = b"\x89PNG\r\n\x1a\n"


class Message(NamedTuple):
    """One question: ``explain`` asks for explanations, ``accept`` for the form of the answer."""

    picture: bytes
    params: Mapping[str, Any]
    explain: bool
    accept: Media


class Asking(ABC):
    """The methods of every client; one may be used by many threads at once. A subclass sends and closes.

    All of them raise RemoteError where the server refuses the request (with its code, its message and the field at
    fault), ServerError where there is no answer in time or none that can be read, ImageError for a picture that cannot
    be read here.
    """

    def __init__(self, *, patience: Patience, form: Form) -> None:
        if form not in _MEDIA:
            raise RequestError(f"no form {form!r}; there are: {', '.join(_MEDIA)}", field="form")
        self._patience = patience
        self._media = _MEDIA[form]

    def explain(self, picture: Picture, **asked: Unpack[Asked]) -> Reply:
        """Predictions and explanations of one picture; without ``methods`` those that the archive names.

        ``picture``: a path, the bytes of a picture file, or an opened picture. Maps are what the library gives:
        ``values_NCHW`` of shape (1, C, H, W), in float32 unless ``dtype`` says otherwise.
        """
        return from_body(self._ask(Message(encoded(picture), checked(asked), True, self._media)))

    def predict(
        self, picture: Picture, topk: int = 5, *, deadline_ms: float | None = None, request_id: str = ""
    ) -> Reply:
        """The ``topk`` likeliest classes alone, the likeliest first."""
        params = _given(topk=topk, deadline_ms=deadline_ms, request_id=request_id)
        return from_body(self._ask(Message(encoded(picture), params, False, JSON)))

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
        body = self._ask(Message(encoded(picture), asked, True, PNG))
        if not body.startswith(_PNG_STARTS):
            raise ServerError(f"the answer is no PNG, but starts with {body[:40]!r}; is this a ConvLens server?")
        return body

    def explain_many(
        self, pictures: Iterable[Picture], *, at_once: int = 8, **asked: Unpack[Asked]
    ) -> Iterator[Reply | ConvLensError]:
        """For each picture, in order, its reply or the error that it met, so many being asked about at once.

        Pictures are taken as they can be sent: there may be any number of them. What is still to be sent when the
        caller stops is not sent.
        """
        return in_order(lambda picture: self.explain(picture, **asked), pictures, at_once=at_once)

    def ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the model answers, by a tiny inference: a server says that it is up before its models are.

        Raises RemoteError for what waiting will not mend, such as a wrong token or a model that is not there.
        """
        try:
            self._send(Message(GREY, {"topk": 1}, False, JSON), timeout_s=timeout_s)
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
    def _send(self, message: Message, *, timeout_s: float) -> bytes:
        """The body of the answer, or the error that it is."""

    def _ask(self, message: Message) -> bytes:
        return self._patience.ask(lambda left_s: self._send(message, timeout_s=left_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value not in (None, "")}
