"""What docs/serving.md says is so: its server without TorchServe runs, its commands and variables are there."""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from kubernetes_manifests import ROOT
from live_server import array, photograph, strict

from convlens import image
from convlens.engine.engine import Engine
from convlens.models import load
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.torchserve.server_config import free_ports

TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    (block,) = blocks("python")
    script = tmp_path_factory.mktemp("door") / "door.py"
    script.write_text(block, encoding="utf-8")
    port = free_ports().inference
    process = subprocess.Popen([sys.executable, str(script), str(port)], stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            ends = time.monotonic() + 60
            while True:
                try:
                    client.put("/predictions/convlens", content=b"")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None and time.monotonic() < ends
                    time.sleep(0.2)
            yield client
    finally:
        process.kill()
        process.communicate()


def test_the_server_without_torchserve_is_short() -> None:
    (block,) = blocks("python")
    assert len([line for line in block.splitlines() if line.strip()]) < 40


def test_it_explains_as_the_engine_does(door: httpx.Client) -> None:
    asked = {"methods": ["saliency"], "output": ["array"]}
    (reply,) = Engine(load(device="cpu")).run([Request(image.decode(photograph()), parse_params(asked))])
    body = {"data": {"b64": base64.b64encode(photograph()).decode()}, "params": asked}
    answer = strict(door.post("/predictions/convlens", json=body).content)
    assert answer["predictions"][0]["label"] == reply.predictions[0].label == "tiger cat"
    (explained,) = answer["explanations"]
    wanted = reply.explanations[0].result.values_NCHW[0]
    np.testing.assert_allclose(
        array(explained["array"]).reshape(wanted.shape), wanted, atol=1e-4 * np.abs(wanted).max()
    )


def test_it_takes_a_file_as_curl_sends_it(door: httpx.Client) -> None:
    reply = door.put("/predictions/convlens", content=photograph()).json()
    assert reply["predictions"][0]["label"] == "tiger cat"
    assert reply["explanations"] == []


def test_it_gives_an_overlay_to_whom_accepts_pictures(door: httpx.Client) -> None:
    body = {"data": {"b64": base64.b64encode(photograph()).decode()}, "params": {"methods": ["saliency"]}}
    answer = door.post("/predictions/convlens", json=body, headers={"Accept": "image/png"})
    assert answer.headers["Content-Type"] == "image/png"
    assert image.decode(answer.content).size == (224, 224)


def test_it_takes_the_method_from_the_path(door: httpx.Client) -> None:
    answer = door.put("/explanations/convlens/1.0/grad_cam", content=photograph(), headers={"Accept": "image/png"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    assert image.decode(answer.content).size == (224, 224)
    reply = door.put("/explanations/convlens/1.0/saliency", content=photograph()).json()
    assert [one["method"] for one in reply["explanations"]] == ["saliency"]


@pytest.mark.parametrize("path", ["/", "/predictions", "/ping", "/v2/models/convlens"])
def test_it_refuses_other_paths(door: httpx.Client, path: str) -> None:
    answer = door.put(path, content=photograph())
    assert answer.status_code == 422
    assert "no such path" in answer.json()["message"]


def test_a_method_that_is_a_path_is_refused_by_its_name(door: httpx.Client) -> None:
    answer = door.put("/explanations/convlens/1.0/saliency/more", content=photograph())
    assert answer.status_code == 422
    assert "no method 'saliency/more'" in answer.json()["message"]


@pytest.mark.parametrize("sent", [b"", b"no picture"])
def test_it_refuses_like_the_service(door: httpx.Client, sent: bytes) -> None:
    answer = door.put("/explanations/convlens", content=sent)
    assert answer.status_code == 400
    assert strict(answer.content)["type"] == "ImageError"


def test_variables_in_the_table_are_those_of_the_image_and_the_program() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    container = (ROOT / "convlens" / "torchserve" / "container.py").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(CONVLENS_\w+)` \| `([^`]*)` \| `([^`]*)` \|", TEXT, flags=re.MULTILINE)
    assert len(rows) == 4
    for name, image_s, program_s in rows:
        assert f'"{name}"' in container
        set_there = re.search(rf"\b{name}=(\S+)", dockerfile)
        assert image_s == (set_there.group(1) if set_there else program_s)
        usual = re.search(rf'"{name}", (?:"([^"]*)"|server_config\.LOOPBACK)', container)
        assert usual is not None and program_s == (usual.group(1) or "127.0.0.1")


def test_variants_in_the_table_are_those_that_the_image_has() -> None:
    rows = re.findall(r"^\| `(\w+)`(?: \(default\))? \| [\d.]+ GB \|", TEXT, flags=re.MULTILINE)
    assert set(rows) == {path.stem.removeprefix("image-") for path in (ROOT / "requirements").glob("image-*.txt")} - {
        "unused",
        "unused-onnx",
    }


def test_every_file_that_a_command_names_is_there() -> None:
    words = [word for block in blocks("console") for word in shlex.split(block, comments=True)]
    named = [word for word in words if word.startswith(("deploy/", "scripts/"))]
    assert len(named) >= 4
    for path in named:
        assert (ROOT / path).exists(), path
