"""Bodies of HTTP requests as the parts that ``convlens.protocol.requests`` reads, in every client's style."""

from __future__ import annotations

import json
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import HTTP
from typing import Any

from convlens.errors import RequestError

_MAX_PARTS = 1000  # a form has two; to look at 100,000 would hold up the others
_HEADERS = BytesHeaderParser(policy=HTTP)


def body_parts(body: bytes, content_type: str) -> dict[str, Any]:
    """The fields of a form, or ``{"body": …}`` with the whole body: an object where it is JSON, text, or bytes.

    What says that it is JSON and is none stays as it came, for the reader of requests to refuse. RequestError for a
    form of more parts than anybody needs.
    """
    kind = _message(content_type)
    boundary = kind.get_param("boundary")
    if kind.get_content_type() == "multipart/form-data" and isinstance(boundary, str) and boundary:
        return _form(body, boundary.encode("latin-1", errors="replace"))
    return {"body": _typed(body, content_type)}


def _form(body: bytes, boundary: bytes) -> dict[str, Any]:
    """The last part of each name (RFC 7578); a part that is not ended is not there."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, maxsplit=_MAX_PARTS + 2)
    if len(pieces) > _MAX_PARTS + 2:  # with what is before the first and after the last boundary
        raise RequestError(f"a form of more than {_MAX_PARTS} parts; known parts: data, params", field="data")
    fields: dict[str, Any] = {}
    for piece in pieces[1:-1]:  # before the first boundary and after the last one there is nothing of the form
        head, blank, content = piece.partition(b"\r\n\r\n")
        headers = _HEADERS.parsebytes(head.lstrip(b"\r\n") + b"\r\n\r\n")
        name = headers.get_param("name", header="content-disposition")
        if blank and isinstance(name, str):
            fields[name] = _typed_part(content, headers)
    return fields


def _typed_part(content: bytes, headers: Message) -> Any:
    # A file that is typed JSON is parsed, any other part is bytes: its type is lost on TorchServe.
    is_file = headers.get_filename() is not None
    return _typed(content, headers.get("content-type", "")) if is_file else content


def _typed(content: bytes, content_type: str) -> Any:
    media = content_type.lower()
    try:
        if "application/json" in media:
            return json.loads(content)
        if media.startswith("text/"):
            return content.decode()
    except (ValueError, RecursionError):
        pass
    return content


def _message(content_type: str) -> Message:
    message = Message()
    message["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
    return message
