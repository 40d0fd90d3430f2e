"""Binary tensor data in KServe v2 bodies, written and read by Triton's own client."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from engines import engine, picture, replied
from image_files import saved
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from convlens.errors import ConvLensError
from convlens.protocol.encoding import ApiResponse, encode_response
from convlens.protocol.requests import ApiRequest, parse_request
from convlens.protocol.tensors import LENGTH_HEADER

FILES = [saved(picture(n), "PNG") for n in range(3)]


def sent(files: list[bytes] = FILES, **options: Any) -> tuple[bytes, dict[str, str]]:
    """A body as Triton's client writes it, and its headers."""
    tensor = InferInput("data", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, object))
    body, length = InferenceServerClient.generate_request_body([tensor], **options)
    return body, {LENGTH_HEADER: str(length)}


def read(body: bytes, headers: dict[str, str]) -> ApiRequest:
    return parse_request({"body": bytearray(body)}, headers)


def answered(call: ApiRequest) -> ApiResponse:
    return encode_response(call, [replied(one) for one in engine().run(call.requests)])


def test_images_are_the_elements_of_the_tensor() -> None:
    call = read(*sent())
    for n, request in enumerate(call.requests):
        np.testing.assert_array_equal(np.asarray(request.image), np.asarray(picture(n)))


def test_triton_s_client_reads_in_bytes_what_json_says() -> None:
    parameters = {"topk": 2, "methods": ["saliency"]}
    out = answered(read(*sent(parameters=parameters)))
    assert out.media == "application/octet-stream"
    assert isinstance(out.body, bytes)
    result = InferenceServerClient.parse_response_body(out.body, header_length=int(out.headers[LENGTH_HEADER]))
    named = [InferRequestedOutput(name, binary_data=False) for name in ("index", "label", "probability", "reply")]
    plain = json.loads(answered(read(*sent(parameters=parameters, outputs=named))).body)
    for output in plain["outputs"]:
        found = result.as_numpy(output["name"])
        assert list(found.shape) == output["shape"]
        values = [one.decode() if isinstance(one, bytes) else one for one in found.ravel().tolist()]
        if output["name"] == "reply":  # its times differ from run to run
            values, wanted = ([json.loads(one)["predictions"] for one in texts] for texts in (values, output["data"]))
            assert values == wanted
        else:
            assert values == output["data"]


def test_each_output_is_bytes_or_json_as_asked() -> None:
    outputs = [InferRequestedOutput("label", binary_data=False), InferRequestedOutput("index", binary_data=True)]
    out = answered(read(*sent(outputs=outputs)))
    assert isinstance(out.body, bytes)
    length = int(out.headers[LENGTH_HEADER])
    label, index = json.loads(out.body[:length])["outputs"]
    assert len(label["data"]) == 15
    assert "data" not in index
    assert index["parameters"] == {"binary_data_size": 3 * 5 * 8} == {"binary_data_size": len(out.body) - length}


def element(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(data) if length is None else length) + data


def body(tail: bytes, size: object, **more: Any) -> tuple[bytes, int]:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return text + tail, len(text)


@pytest.mark.parametrize(
    ("tail", "size", "message"),
    [
        (element(b"x"), 6, "no number of the 5 bytes"),
        (element(b"x"), -1, "no number of the 5 bytes"),
        (element(b"x"), True, "no number of the 5 bytes"),
        (element(b"x"), "5", "no number of the 5 bytes"),
        (element(b"xy"), 5, "element 0 is not four bytes of its length"),
        (element(b"x", length=2**32 - 1), 5, "element 0 is not four bytes of its length"),
        (element(b"x") + b"123", 8, "element 1 is not four bytes of its length"),
        (element(b"x") + b"more", 5, "4 bytes after the tensors"),
        (element(b"") * 100_000, 400_000, "element 1000 is not"),
        (element(b"") * 17, 68, "at most 16 items"),
        (element(b"nothing"), 11, "is not an image"),
    ],
)
def test_what_does_not_fit_its_size_is_refused(tail: bytes, size: object, message: str) -> None:
    data, length = body(tail, size)
    with pytest.raises(ConvLensError, match=message) as caught:
        read(data, {LENGTH_HEADER: str(length)})
    assert caught.value.status in (400, 422)


@pytest.mark.parametrize("length", ["0", "-1", "1e3", "99999999", "²", "x" * 1000])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    data, _ = body(element(b"x"), 5)
    with pytest.raises(ConvLensError, match="is no length of JSON") as caught:
        read(data, {LENGTH_HEADER: length})
    assert (caught.value.status, caught.value.field) == (422, LENGTH_HEADER)


@pytest.mark.parametrize("text", [b"{", b"[]", b"[" * 100_000, b'{"inputs": 1}', b'{"instances": []}'])
def test_what_is_no_v2_body_before_the_tensors_is_refused(text: bytes) -> None:
    with pytest.raises(ConvLensError) as caught:
        read(text, {LENGTH_HEADER: str(len(text))})
    assert caught.value.status == 422
