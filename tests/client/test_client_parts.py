"""What the clients are made of: parameters, pictures, tokens, many at once, and what importing them loads."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from engines import LABELS, engine, picture, replied
from image_files import saved
from PIL import Image

from convlens import image
from convlens.client import Client, GrpcClient
from convlens.client.auth import TokenAuth, is_loopback
from convlens.client.base import image_bytes, params_json
from convlens.errors import ConvLensError, ImageError, RequestError, ServerError
from convlens.protocol.encoding import encode_file
from convlens.protocol.negotiation import SAFETENSORS
from convlens.protocol.params import Params, RequestParams, parse_params
from convlens.protocol.requests import Request
from convlens.protocol.responses import dumps, parse_reply, to_json
from convlens.types import Attribution

# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "allowed"), [("Client", set()), ("GrpcClient", {"grpc", "google"})])
def test_a_client_loads_nothing_that_only_the_library_needs(name: str, allowed: set[str]) -> None:
    script = f"import sys; from convlens.client import {name}; print(*{{one.partition('.')[0] for one in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"torch", "torchvision", "timm", "faiss", "captum", "onnxruntime", "onnx", "pyarrow", "typer"}
    heavy |= {"filelock", "imageio", "jinja2", "safetensors", "scipy", "sklearn", "yaml"}
    assert set(done.stdout.split()).isdisjoint((heavy | {"grpc", "google"}) - allowed)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_the_clients_parameters_are_those_of_a_request_but_for_what_clients_set_themselves() -> None:
    ours, theirs = get_type_hints(RequestParams), get_type_hints(Params)
    assert set(ours) == set(theirs) - {"explain", "accept", "sent_at"}
    for name in ("topk", "dtype", "reduce", "size", "thumbnails"):
        assert ours[name] == theirs[name]
    assert get_args(ours["output"]) == get_args(theirs["output"])


@pytest.mark.parametrize("name", ["explain", "accept", "sent_at"])
def test_what_a_client_sets_itself_is_refused_with_what_to_do(name: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(RequestError, match=name) as caught:
        client.explain(b"x", **{name: 1})  # type: ignore[misc]
    assert caught.value.field == name


def test_numpy_s_numbers_and_tuples_become_plain_json() -> None:
    params = {"topk": np.int64(3), "deadline_ms": np.float32(0.5), "methods": ("saliency",)}
    assert json.loads(params_json(params)) == {"topk": 3, "deadline_ms": 0.5, "methods": ["saliency"]}


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_what_json_cannot_hold_is_refused_before_it_is_sent(value: object) -> None:
    with pytest.raises(RequestError, match="cannot be written as JSON"):
        params_json({"seed": value})


@pytest.mark.parametrize("given", [{"form": "npz"}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"retries": -1}])
def test_impossible_settings_are_refused(given: dict[str, Any]) -> None:
    for make in (lambda: Client("http://127.0.0.1:9", **given), lambda: GrpcClient("127.0.0.1:9", **given)):
        with pytest.raises(RequestError, match=next(iter(given))):
            make()


@pytest.mark.parametrize("address", ["127.0.0.1", "http://127.0.0.1:7070", ":7070", "host:", "host:x"])
def test_a_grpc_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(RequestError, match="HOST:PORT"):
        GrpcClient(address)


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *((host, True) for host in ("127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost", "LocalHost")),
        *((host, False) for host in ("10.0.0.1", "example.org", "localhost.example.org", "")),
    ],
)
def test_which_addresses_are_this_machines(host: str, ours: bool) -> None:
    assert is_loopback(host) is ours


# --- pictures ---------------------------------------------------------------------------------------------------------


def turned_jpeg() -> bytes:
    """Lies on its side, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with io.BytesIO() as file:
        picture(1, size=(32, 20)).save(file, "JPEG", exif=exif, quality=95)
        return file.getvalue()


def clear_png() -> bytes:
    rgba = picture(2).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    return saved(rgba, "PNG")


def deep_png() -> bytes:
    return saved(Image.fromarray((np.arange(600, dtype=np.uint16) * 100).reshape(20, 30)), "PNG")


@pytest.mark.parametrize("data", [turned_jpeg(), clear_png(), deep_png(), saved(picture(3), "PNG")])
def test_an_opened_picture_is_the_same_to_the_model_as_its_file(data: bytes) -> None:
    sent = image.decode(image_bytes(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(image.decode(data)))


def test_an_opened_picture_is_left_as_it_was() -> None:
    opened = Image.open(io.BytesIO(turned_jpeg()))
    image_bytes(opened)
    assert opened.size == (32, 20)
    assert opened.getexif()[0x0112] == 6


def test_a_file_is_sent_as_it_is_and_a_missing_one_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"any bytes")
    assert image_bytes(tmp_path / "a.png") == image_bytes(str(tmp_path / "a.png")) == b"any bytes"
    with pytest.raises(ImageError, match=r"b\.png: cannot be read"):
        image_bytes(tmp_path / "b.png")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_comes_from_its_argument_or_key_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key_file.json"
    path.write_text('{"management": {"key": "m"}, "inference": {"key": "abc", "expiration time": "…"}}')
    monkeypatch.setenv("CONVLENS_TOKEN", " from-outside\n")
    assert TokenAuth("given\n").header() == "Bearer given"
    assert TokenAuth(key_file=path).header() == "Bearer abc"
    assert TokenAuth().header() == "Bearer from-outside"
    assert TokenAuth("").header() is None
    monkeypatch.delenv("CONVLENS_TOKEN")
    assert TokenAuth().header() is None


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "schlüssel", "nul\0"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_repeated(token: str) -> None:
    for client in (Client("http://127.0.0.1:9", token=token), GrpcClient("127.0.0.1:9", token=token)):
        with client, pytest.raises(ServerError, match="the token in token holds") as caught:
            client.predict(b"x")
        assert token not in caught.value.message
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", ["secret-key", "{}", "[]", '{"inference": {}}', '{"inference": {"key": 7}}'])
def test_a_key_file_without_a_key_is_named_without_what_it_holds(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key_file.json"
    path.write_text(text)
    with pytest.raises(ServerError, match=r"key_file\.json holds no inference key") as caught:
        TokenAuth(key_file=path).header()
    assert caught.value.__cause__ is None
    assert "secret-key" not in caught.value.message


def test_two_sources_of_a_token_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="give one of them"):
        Client("http://127.0.0.1:9", token="a", key_file=tmp_path / "key_file.json")
    with pytest.raises(ServerError, match="cannot read"):
        TokenAuth(key_file=tmp_path / "absent").header()


# --- many at once -----------------------------------------------------------------------------------------------------


class Local(Client):
    """Answers by a function of the image's bytes, without a server."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        super().__init__("http://127.0.0.1:9")
        self.answer = answer

    def explain(self, picture: Any, **_: Any) -> Any:
        return self.answer(picture)


def test_answers_keep_their_order_and_no_more_run_than_allowed() -> None:
    running: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def answer(item: int) -> int:
        with lock:
            running.append(item)
            most.append(len(running))
        time.sleep(0.02 if item % 3 else 0.06)
        with lock:
            running.remove(item)
        if item == 5:
            raise RequestError("five is refused")
        return item * item

    with Local(answer) as client:
        results: list[Any] = list(client.explain_many(range(20), at_once=4))  # type: ignore[arg-type]
    assert isinstance(results[5], RequestError)
    assert [one for one in results if not isinstance(one, ConvLensError)] == [n * n for n in range(20) if n != 5]
    assert max(most) == 4


def test_endless_images_are_taken_as_they_are_needed_and_dropped_when_nobody_looks() -> None:
    taken: list[int] = []

    def items() -> Iterator[Any]:
        for number in range(10**9):
            taken.append(number)
            yield number

    with Local(lambda item: item) as client:
        answers: Any = client.explain_many(items(), at_once=2)
        assert [next(answers) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert len(taken) <= 5 + 2 * 2
        answers.close()
        with pytest.raises(RequestError, match="at_once=0"):
            client.explain_many([b"x"], at_once=0)


def test_a_bug_is_no_value() -> None:
    with Local(lambda item: 1 // item) as client, pytest.raises(ZeroDivisionError):
        list(client.explain_many([1, 0], at_once=2))  # type: ignore[list-item]


# --- replies read back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"dtype": "<f2"}, {"reduce": "sum"}, {"size": "original"}])
def test_json_and_safetensors_are_read_back_as_the_same_reply(asked: dict[str, Any]) -> None:
    methods = ["saliency", {"method": "occlusion", "id": "coarse", "options": {"window": 8, "stride": 8}}]
    params = parse_params({"methods": methods, "request_id": "r", "target": LABELS[4], **asked})
    reply = replied(engine().run([Request(picture(4, size=(40, 30)), params)])[0])
    by_json = parse_reply(dumps(to_json(reply, params)).encode())
    by_file = parse_reply(encode_file(reply, params, SAFETENSORS))
    assert dumps(to_json(by_file, params)) == dumps(to_json(by_json, params))
    for one, other, original in zip(by_json.explanations, by_file.explanations, reply.explanations, strict=True):
        for result in (one.result, other.result, original.result):
            assert isinstance(result, Attribution)
        assert one.result.values_NCHW.dtype == other.result.values_NCHW.dtype
        assert one.result.values_NCHW.tobytes() == other.result.values_NCHW.tobytes()
        if asked == {}:
            assert other.result.values_NCHW.tobytes() == original.result.values_NCHW.tobytes()
            assert other.result.extras.keys() == original.result.extras.keys()
        assert (other.overlay_png, other.target_label) == (original.overlay_png, LABELS[4])
        assert other.result.meta == original.result.meta
    assert (by_file.timing_ms, by_file.placement) == (reply.timing_ms, reply.placement)
    assert by_file.predictions == reply.predictions


def test_maps_that_were_not_asked_for_are_empty() -> None:
    params = parse_params({"methods": ["saliency"], "output": ["overlay"]})
    reply = replied(engine().run([Request(picture(4), params)])[0])
    for body in (
        dumps(to_json(reply, params)).encode(),
        encode_file(reply, params, SAFETENSORS),
    ):
        (found,) = parse_reply(body).explanations
        assert isinstance(found.result, Attribution)
        assert found.result.values_NCHW.shape == (1, 0, 0, 0)
        assert found.result.score_N == reply.explanations[0].result.score_N
        assert found.overlay_png == reply.explanations[0].overlay_png
