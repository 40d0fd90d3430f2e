"""The handlers without a server, but with TorchServe's own Context: what a live one cannot be made to do quickly."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import counted, engine, picture, request, values
from graph_cache import GraphCache
from image_files import saved
from ts.context import Context, RequestProcessor

from convlens.errors import GalleryError, ModelError
from convlens.models import load, pack, weights_sha256
from convlens.serving.handler import BatchHandler
from export.bundle import bundle
from handlers.convlens_handler import ConvLensHandler
from handlers.onnx_handler import OnnxHandler

PNG = saved(picture(1), "PNG")


def context(folder: Path, *, batch_size: int = 8, gpu: int | None = None, **config: Any) -> Context:
    manifest = {"model": {"modelName": "m", "modelVersion": "3.1"}}
    return Context("m", str(folder), manifest, batch_size, gpu, "0.12", model_yaml_config=config)


def handled(handler: BatchHandler, *items: dict[str, Any], **headers: str) -> list[tuple[int, Any]]:
    """Status and body of each item, as TorchServe would send them."""
    at = context(Path())
    at.request_processor = [RequestProcessor(headers) for _ in items]
    texts = handler.handle(list(items), at)
    assert all(type(text) is str for text in texts)
    assert [at.get_response_content_type(n) for n in range(len(items))] == ["application/json"] * len(items)
    # A line break in the phrase would kill the worker.
    phrases = [at.get_response_status(n)[1] or "" for n in range(len(items))]
    assert all(phrase.isalnum() or not phrase for phrase in phrases)
    statuses = [at.get_response_status(n)[0] for n in range(len(items))]
    return [(status, json.loads(text)) for status, text in zip(statuses, texts, strict=True)]


@pytest.fixture
def small_handler() -> ConvLensHandler:
    """With a small network; two classes share a label, one label has a line break."""
    handler = ConvLensHandler()
    handler.engine = engine()
    return handler


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    pack(load("packaged:efficientnet_lite0", device="cpu"), folder / "model")
    return folder


def test_each_row_has_its_own_status_in_its_own_place(small_handler: ConvLensHandler) -> None:
    found = handled(
        small_handler,
        {"body": bytearray(PNG)},
        {"body": bytearray(b"none")},
        {"data": bytearray(PNG), "params": b'{"methods": ["saliency"], "target": 5}'},
        {"data": bytearray(PNG), "params": b'{"methods": ["saliency"], "target": "crane", "request_id": "r"}'},
        {"body": "text"},
        {"data": bytearray(PNG), "params": b'{"topk": 1}'},
    )
    assert [status for status, _ in found] == [200, 400, 200, 422, 415, 200]
    assert [len(body["predictions"]) for status, body in found if status == 200] == [5, 5, 1]
    assert found[2][1]["explanations"][0]["target_label"] == "line\nbreak"
    assert (found[3][1]["type"], found[3][1]["request_id"]) == ("TargetError", "r")


def test_a_batch_of_refusals_alone_is_answered(small_handler: ConvLensHandler) -> None:
    assert [status for status, _ in handled(small_handler, {"body": b""}, {}, {"body": {}})] == [400, 422, 422]


def test_the_routes_header_decides_for_each_item(small_handler: ConvLensHandler) -> None:
    at = context(Path())
    headers = [{"explain": "True"}, {"explain": "False"}, {"explain": "False", "url_path": "grad_cam"}, {}]
    at.request_processor = [RequestProcessor(one) for one in headers]
    bodies = [json.loads(text) for text in small_handler.handle([{"body": PNG}] * 4, at)]
    assert [[one["id"] for one in body["explanations"]] for body in bodies] == [
        ["saliency", "guided_backprop", "occlusion"],
        [],
        ["grad_cam"],
        [],
    ]


def test_only_what_came_over_grpc_is_marked_as_the_last_of_its_stream(small_handler: ConvLensHandler) -> None:
    """Over gRPC the headers hold the parts' types alone, though a part may be called like one; REST says explain."""
    at = context(Path())
    came = [{"explain": "False", "Host": "x"}, {"data": {"content-type": ""}}, {"explain": {"content-type": ""}}]
    at.request_processor = [RequestProcessor(one) for one in came]
    small_handler.handle([{"body": PNG}, {"data": PNG}, {"data": PNG, "explain": b"True"}], at)
    assert [at.get_response_headers(n).get("ts_stream_next") for n in range(3)] == [None, "false", "false"]


def test_a_reply_beyond_its_share_of_what_the_server_can_send_is_refused_alone(small_handler: ConvLensHandler) -> None:
    small_handler.max_reply_bytes = 5_000
    found = handled(
        small_handler,
        {"body": PNG},
        {"data": PNG, "params": b'{"methods": ["saliency"], "request_id": "big"}'},
        {"data": PNG, "params": b'{"methods": ["saliency"], "output": [], "request_id": "small"}'},
    )
    assert [status for status, _ in found] == [200, 422, 200]
    assert "allowed; ask for fewer methods" in found[1][1]["message"]
    assert found[1][1]["request_id"] == "big"


def test_a_network_of_damaged_weights_answers_in_strict_json(small_handler: ConvLensHandler) -> None:
    module = counted()
    module.head.weight.data.fill_(torch.nan)
    small_handler.engine = engine(module)
    ((status, body),) = handled(small_handler, {"data": PNG, "params": b'{"methods": ["saliency", "occlusion"]}'})
    assert (status, body["type"]) == (500, "ModelError")


def test_before_it_is_initialised_it_answers_nothing() -> None:
    with pytest.raises(ModelError, match="before it was initialised"):
        ConvLensHandler().handle([{"body": PNG}], context(Path()))


# --- initialisation ---------------------------------------------------------------------------------------------------


def test_a_worker_allows_what_its_archive_says_and_no_more(archive: Path) -> None:
    # In a process of its own, since the flags are the process's. It begins with all that torch can be told to allow.
    script = """
import sys
import torch
torch.set_float32_matmul_precision("medium")
from ts.context import Context
from handlers.convlens_handler import ConvLensHandler
backends = torch.backends
for precision in ("tf32", None, "half"):
    section = {"precision": precision, "methods": ["saliency"]}
    manifest = {"model": {"modelName": "m"}}
    context = Context("m", sys.argv[1], manifest, 1, None, "0.12", model_yaml_config={"convlens": section})
    ConvLensHandler().initialize(context)
    print(backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.mkldnn.matmul.fp32_precision)
"""
    run = [sys.executable, "-c", script, str(archive)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-3:] == ["True True ieee", "False False ieee", "False False ieee"]


def test_an_archive_of_an_unknown_precision_does_not_start(archive: Path) -> None:
    with pytest.raises(ModelError, match="no precision 'int8'; there are: float32, tf32, half"):
        ConvLensHandler().initialize(context(archive, convlens={"precision": "int8"}))


def test_the_archives_configuration_is_what_counts(archive: Path) -> None:
    section = {
        "model": "model",
        "methods": ["grad_cam"],
        "max_cost": 50,
        "limits": {"bytes": 1000, "pixels": 99},
        "threads": torch.get_num_threads(),
    }
    handler = ConvLensHandler()
    handler.initialize(context(archive, batch_size=4, convlens=section))
    assert handler.initialized
    assert handler.engine is not None
    options = handler.engine.options
    assert (options.name, options.version) == ("m", "3.1")
    assert (options.default_methods, options.max_cost) == (("grad_cam",), 50.0)
    ((status, body),) = handled(handler, {"body": PNG})
    assert (status, body["type"]) == (413, "ImageTooLargeError")
    assert handler.max_reply_bytes * 4 <= 64_000_000


@pytest.fixture(scope="module")
def with_graph(tmp_path_factory: pytest.TempPathFactory, exported: GraphCache) -> Path:
    """An archive's folder with the graph for sweeps in it, and beside it one of other weights."""
    folder = tmp_path_factory.mktemp("with_graph")
    classifier = load("torchvision:squeezenet1_1:untrained?size=64&resize=64", device="cpu")
    pack(classifier, folder / "model")
    (folder / "graphs").mkdir()
    (folder / "other").mkdir()
    (folder / "graphs" / "scores.onnx").symlink_to(exported(classifier, "scores"))
    classifier.module.features[0].bias.add_(1.0)
    other = replace(classifier, spec=replace(classifier.spec, weights_sha256=weights_sha256(classifier.module)))
    (folder / "other" / "scores.onnx").symlink_to(exported(other, "scores"))
    return folder


def test_sweeps_run_on_the_graph_that_the_archive_carries(with_graph: Path) -> None:
    asked = b'{"methods": [{"method": "occlusion", "target": 504}, {"method": "saliency", "target": 504}]}'
    bodies = []
    for section in ({}, {"graphs": "graphs"}):
        handler = ConvLensHandler()
        handler.initialize(context(with_graph, convlens=section))
        ((status, body),) = handled(handler, {"data": PNG, "params": asked})
        assert not status or status == 200
        bodies.append(body)
    by_torch, by_graph = ({one["id"]: one for one in body["explanations"]} for body in bodies)
    runtimes = {name: one["meta"]["runtime"] for name, one in by_graph.items()}
    assert runtimes == {"occlusion": "onnxruntime:CPUExecutionProvider", "saliency": "torch"}
    maps = [np.frombuffer(base64.b64decode(one["occlusion"]["array"]["data"]), "<f4") for one in (by_torch, by_graph)]
    # Drops are small differences of scores that agree to 1e-4 relative.
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-4 * abs(by_torch["occlusion"]["target_score"]))


def test_a_graph_of_other_weights_keeps_the_worker_from_starting(with_graph: Path) -> None:
    with pytest.raises(ModelError, match="exported from weights"):
        ConvLensHandler().initialize(context(with_graph, convlens={"graphs": "other"}))


def test_a_gpu_that_was_asked_for_and_not_given_is_an_error(archive: Path) -> None:
    handler = ConvLensHandler()
    with pytest.raises(ModelError, match="deviceType is gpu, but TorchServe gave this worker none"):
        handler.initialize(context(archive, deviceType="gpu", convlens={}))
    assert not handler.initialized


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_a_gpu_that_is_given_and_not_there_is_an_error(archive: Path) -> None:
    with pytest.raises(ModelError, match="finds no CUDA device"):
        ConvLensHandler().initialize(context(archive, gpu=0))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive's folder that holds graphs and no network."""
    folder = tmp_path_factory.mktemp("graphs")
    net = load("torchvision:squeezenet1_1:untrained?size=64&resize=64", device="cpu")
    bundle(net, folder / "graphs", kinds=("embedding",))
    return folder


def test_graphs_answer_row_by_row_like_a_network(graphs: Path) -> None:
    handler = OnnxHandler()
    handler.initialize(context(graphs, convlens={"methods": ["occlusion"]}))
    found = handled(
        handler,
        {"body": bytearray(PNG)},
        {"body": bytearray(b"none")},
        {"data": PNG, "params": b'{"methods": ["grad_cam"]}'},
        {"data": PNG, "params": b'{"methods": [{"method": "occlusion", "options": {"window": 64}}], "topk": 1}'},
    )
    assert [status for status, _ in found] == [200, 400, 422, 200]
    assert {body["runtime"] for status, body in found if status == 200} == {"onnxruntime:CPUExecutionProvider"}
    assert (found[0][1]["model"]["name"], found[0][1]["model"]["version"]) == ("m", "3.1")


def test_graphs_on_a_gpu_that_was_asked_for_and_not_given_are_an_error(graphs: Path) -> None:
    with pytest.raises(ModelError, match="deviceType is gpu, but TorchServe gave this worker none"):
        OnnxHandler().initialize(context(graphs, deviceType="gpu", convlens={}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_graphs_on_a_gpu_that_is_given_and_not_there_are_an_error(graphs: Path) -> None:
    with pytest.raises(ModelError, match=r"CUDAExecutionProvider was asked for|cannot be opened"):
        OnnxHandler().initialize(context(graphs, gpu=0))


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"gallery": "nowhere"}, GalleryError),
        ({"methods": ["neighbours"]}, GalleryError),
        ({"graphs": "no"}, ModelError),
    ],
)
def test_an_archive_of_graphs_that_lacks_what_it_names_does_not_start(graphs: Path, section: Any, error: type) -> None:
    with pytest.raises(error):
        OnnxHandler().initialize(context(graphs, convlens=section))


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"gallery": "nowhere"}, GalleryError),
        ({"methods": ["neighbours"]}, GalleryError),
        ({"model": "nowhere"}, ModelError),
    ],
)
def test_an_archive_that_lacks_what_it_names_does_not_start(archive: Path, section: Any, error: type) -> None:
    with pytest.raises(error):
        ConvLensHandler().initialize(context(archive, convlens=section))


def test_a_reply_holds_the_map_that_the_engine_computed(small_handler: ConvLensHandler) -> None:
    ((_, body),) = handled(small_handler, {"data": PNG, "params": b'{"methods": ["saliency"], "target": 2}'})
    one = body["explanations"][0]["array"]
    found_CHW = np.frombuffer(base64.b64decode(one["data"]), one["dtype"]).reshape(one["shape"])
    (reply,) = engine().run([request(1, methods=["saliency"], target=2)])
    np.testing.assert_array_equal(found_CHW, values(reply, "saliency"))
