"""Binary tensor data: tensors of a KServe v2 body as bytes after its JSON instead of inside it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md: a header holds the
length of the JSON, and ``binary_data_size`` among a tensor's parameters the length of its bytes. Numbers are
little-endian; an element of BYTES is its length in four bytes and then itself. Triton's client sends images so unless
it is told otherwise, and without a content type.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from convlens.errors import RequestError

LENGTH_HEADER = "Inference-Header-Content-Length"
BINARY_MEDIA = "application/octet-stream"
_LENGTH = struct.Struct("<I")
_MAX_ELEMENTS = 1000  # far more than images in one body; elements of no bytes cost a client four bytes each
_DTYPES = {"INT64": "<i8", "FP64": "<f8"}


def attach_tensors(body: bytes | bytearray, header_length: str) -> dict[str, Any]:
    """The JSON object of the body, each binary tensor's elements as its ``data``. Raises RequestError.

    ``header_length`` is the value of the header.
    """
    length = int(header_length) if header_length.isascii() and header_length.isdecimal() else -1
    if not 0 < length <= len(body):
        raise RequestError(
            f"{LENGTH_HEADER}: {header_length[:40]!r} is no length of JSON at the start of {len(body)} bytes",
            field=LENGTH_HEADER,
        )
    try:
        request = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"the first {length} bytes, by {LENGTH_HEADER}, are no JSON: {str(error)[:200]}", field=LENGTH_HEADER
        ) from error
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise RequestError("a body with binary tensors is a KServe v2 body, with inputs", field="inputs")
    start = length
    for n, tensor in enumerate(request["inputs"]):
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        if isinstance(parameters, dict) and "binary_data_size" in parameters:
            size = parameters.pop("binary_data_size")
            place = f"inputs.{n}.parameters.binary_data_size"
            if type(size) is not int or not 0 <= size <= len(body) - start:
                raise RequestError(
                    f"{place}: {str(size)[:40]} is no number of the {len(body) - start} bytes that follow", field=place
                )
            tensor["data"] = _elements(memoryview(body)[start : start + size], place)
            start += size
    if start != len(body):
        raise RequestError(
            f"{len(body) - start} bytes after the tensors; each tensor's binary_data_size is its number of bytes",
            field="inputs",
        )
    return request


def _elements(data: memoryview, place: str) -> list[bytes]:
    elements: list[bytes] = []
    start = 0
    while start < len(data):
        begin = start + _LENGTH.size
        end = begin + (_LENGTH.unpack_from(data, start)[0] if begin <= len(data) else 0)
        if end > len(data) or begin > len(data) or len(elements) == _MAX_ELEMENTS:
            raise RequestError(
                f"{place}: element {len(elements)} is not four bytes of its length, little-endian, and as many bytes",
                field=place,
            )
        elements.append(bytes(data[begin:end]))
        start = end
    return elements


def detach_tensors(reply: Mapping[str, Any], binary: Collection[str]) -> tuple[bytes, int]:
    """The reply with the outputs of these names as bytes after the JSON, and the length of the JSON."""
    outputs, tail = [], []
    for output in reply["outputs"]:
        if output["name"] in binary:
            data = _bytes(output["datatype"], output["data"])
            tail.append(data)
            output = {name: output[name] for name in ("name", "datatype", "shape")}
            output["parameters"] = {"binary_data_size": len(data)}
        outputs.append(output)
    header = json.dumps({**reply, "outputs": outputs}, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([header, *tail]), len(header)


def _bytes(datatype: str, data: list[Any]) -> bytes:
    if datatype in _DTYPES:
        return np.array(data, _DTYPES[datatype]).tobytes()
    elements = [text.encode() for text in data]
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
