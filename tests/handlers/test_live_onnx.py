"""An archive of graphs alone on a live TorchServe, beside the same model by torch and a handler that does nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import empty_handler
import httpx
import numpy as np
import psutil
import pytest
from live_server import array, assert_same_map, photograph, strict

from convlens.cli.photographs import other_photographs
from convlens.gallery import build_from
from convlens.models import load, pack
from convlens.torchserve import archive, server
from convlens.torchserve.archive_config import ArchiveOptions
from convlens.torchserve.server import Server
from export.bundle import Bundle

pytestmark = pytest.mark.live

EMPTY, EAGER, ONNX = "empty", "eager", "onnx"
METHODS = ("saliency", "guided_backprop", "occlusion", "neighbours")
PROVIDER = "onnxruntime:CPUExecutionProvider"
PICTURES = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")


@dataclass(frozen=True)
class Both:
    server: Server
    client: httpx.Client

    def ask(self, model: str, picture: bytes, params: Any) -> httpx.Response:
        form = {"data": ("picture", picture), "params": (None, json.dumps(params))}
        url = f"{self.server.inference_url}/predictions/{model}"
        return self.client.post(url, headers=self.server.headers("inference"), files=form)

    def answer(self, model: str, picture: bytes, params: Any, *, status: int = 200) -> Any:
        got = self.ask(model, picture, params)
        assert got.status_code == status, got.text[:500]
        return strict(got.content)

    def worker(self, model: str) -> psutil.Process:
        url, headers = self.server.management_url, self.server.headers("management")
        (described,) = self.client.get(f"{url}/models/{model}", headers=headers).json()
        return psutil.Process(described["workers"][0]["pid"])


@pytest.fixture(scope="module")
def both(default_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("onnx")
    classifier = load("packaged:efficientnet_lite0", device="cpu")
    build_from(list(other_photographs()), folder / "gallery", classifier)
    pack(classifier, folder / "model")
    # As `convlens archive` packs them: sweeps of their own beside the network, gradients where there is none.
    graphs = _some(default_bundle, folder / "graphs", "embedding", "saliency", "guided_backprop")
    sweeps = _some(default_bundle, folder / "sweeps", "embedding", "occlusion")
    made: dict[str, dict[str, Any]] = {
        EMPTY: {
            "model_dir": None,
            "options": ArchiveOptions(handler=Path(empty_handler.__file__)),
        },
        EAGER: {"model_dir": folder / "model", "gallery": folder / "gallery", "graphs": sweeps},
        ONNX: {"model_dir": None, "gallery": folder / "gallery", "graphs": graphs},
    }
    usual = {"options": ArchiveOptions(batch_size=8, max_batch_delay_ms=50), "store": folder / "store"}
    archives = {name: archive.build(**(usual | how), name=name) for name, how in made.items()}
    with (
        server.running(archives=archives, run_dir=folder / "run") as started,
        httpx.Client(timeout=120, trust_env=False) as client,
    ):
        yield Both(started, client)


def _some(made: Bundle, folder: Path, *kinds: str) -> Path:
    """A folder with some of the graphs."""
    folder.mkdir()
    for name in ("model.json", *(f"{kind}.onnx" for kind in kinds)):
        shutil.copyfile(made.folder / name, folder / name)
    return folder


@pytest.mark.parametrize("name", PICTURES)
def test_graphs_and_network_predict_the_same(both: Both, name: str) -> None:
    eager, onnx = (both.answer(model, photograph(name), {"topk": 10}) for model in (EAGER, ONNX))
    assert [one["index"] for one in onnx["predictions"]] == [one["index"] for one in eager["predictions"]]
    for found, wanted in zip(onnx["predictions"], eager["predictions"], strict=True):
        # float32 in another order of additions
        assert found["logit"] == pytest.approx(wanted["logit"], abs=1e-4)
        assert found["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
    assert onnx["model"]["weights_sha256"] == eager["model"]["weights_sha256"]


def test_a_reply_says_which_runtime_and_provider_answered(both: Both) -> None:
    assert both.answer(ONNX, photograph(), {})["runtime"] == PROVIDER
    assert both.answer(EAGER, photograph(), {})["runtime"] == "torch"


def test_every_exported_explanation_is_the_networks_own(both: Both) -> None:
    asked = {"methods": list(METHODS), "target": "tabby"}
    eager, onnx = (both.answer(model, photograph(), asked)["explanations"] for model in (EAGER, ONNX))
    assert [one["id"] for one in onnx] == list(METHODS)
    for found, wanted in zip(onnx, eager, strict=True):
        assert found["meta"]["runtime"] == PROVIDER
        assert found["meta"]["precision"] == wanted["meta"]["precision"] == "float32"
        if found["id"] == "neighbours":
            assert [one["id"] for one in found["neighbours"]] == [one["id"] for one in wanted["neighbours"]]
            continue
        assert found["target_label"] == "tabby"
        assert found["target_score"] == pytest.approx(wanted["target_score"], abs=1e-4)
        # A unit within rounding of a ReLU's 0 is on in one runtime and off in the other, and moves some pixels.
        error = np.abs(array(found["array"]) - array(wanted["array"])) / np.abs(array(wanted["array"])).max()
        assert np.quantile(error, 0.99) < 1e-4
        assert error.max() < 5e-2


def test_the_eager_archive_sweeps_on_its_graphs_by_default(both: Both) -> None:
    # Three ways are tried once each, torch among them; then the fastest is taken, and that is half as long by a graph.
    asked = {"methods": ["occlusion"], "output": []}
    metas = [both.answer(EAGER, photograph(), asked)["explanations"][0]["meta"] for _ in range(4)]
    assert metas[-1]["runtime"] == PROVIDER


def test_an_explanation_without_a_graph_is_refused_alone(both: Both) -> None:
    said = both.answer(ONNX, photograph(), {"methods": ["grad_cam"]}, status=422)
    assert (said["type"], said["field"]) == ("UnsupportedModelError", "methods.0.method")
    assert "class activation maps need a graph of cam, which this model lacks" in said["message"]
    said = both.answer(ONNX, photograph(), {"methods": ["smoothgrad"]}, status=422)
    assert "needs the network itself" in said["message"]
    said = both.answer(ONNX, photograph(), {"methods": ["deconvnet"]}, status=422)
    assert "there are: saliency, guided_backprop, input_x_gradient, occlusion, rise, neighbours" in said["message"]
    said = both.answer(
        ONNX, photograph(), {"methods": [{"method": "saliency", "options": {"score": "probability"}}]}, status=422
    )
    assert "use score=logit" in said["message"]


def test_rows_of_a_batch_get_what_each_gets_alone(both: Both) -> None:
    sent = [
        ("chelsea.png", {"methods": ["saliency"], "target": 281}),
        ("coffee.png", {"methods": ["saliency"], "target": 967}),
        ("rocket.jpg", {}),
        ("chelsea.png", {"methods": ["grad_cam"]}),
        ("coffee.png", {"methods": ["guided_backprop", "saliency"]}),
    ]
    pid = both.worker(ONNX).pid
    with ThreadPoolExecutor(len(sent)) as pool:
        together = list(pool.map(lambda one: both.ask(ONNX, photograph(one[0]), one[1]), sent))
    assert [got.status_code for got in together] == [200, 200, 200, 422, 200]
    for (name, params), got in zip(sent, together, strict=True):
        if got.status_code == 422:
            continue
        alone, found = both.answer(ONNX, photograph(name), params), strict(got.content)
        assert [one["index"] for one in found["predictions"]] == [one["index"] for one in alone["predictions"]]
        for here, there in zip(found["explanations"], alone["explanations"], strict=True):
            assert_same_map(array(here["array"]), array(there["array"]))
    assert both.worker(ONNX).pid == pid


def test_the_worker_of_graphs_has_loaded_no_network_library(both: Both) -> None:
    both.answer(ONNX, photograph(), {"methods": list(METHODS)})
    mapped = {Path(one.path).parts for one in both.worker(ONNX).memory_maps()}
    loaded = {part for parts in mapped for part in parts}
    assert "onnxruntime" in loaded
    assert not {"torchvision", "timm"} & loaded
    assert "torchvision" in {part for one in both.worker(EAGER).memory_maps() for part in Path(one.path).parts}, (
        "else this test would see nothing"
    )


def test_the_worker_of_graphs_takes_half_of_what_one_of_torch_took_and_less_than_it_takes(both: Both) -> None:
    """By torch sweeps made batches of 32 windows, and held 855 MB (docs/speed.md); by eights they hold 440."""
    for model in (EAGER, ONNX):
        for name in PICTURES:
            both.answer(model, photograph(name), {"methods": list(METHODS)})
    used = {model: both.worker(model).memory_full_info().uss for model in (EMPTY, EAGER, ONNX)}
    assert used[EMPTY] > 200e6  # TorchServe's own worker imports torch
    above = {model: used[model] - used[EMPTY] for model in (EAGER, ONNX)}
    assert above[ONNX] <= min(855e6 / 2, above[EAGER]), {name: u // 1e6 for name, u in used.items()}
