"""Both clients on a live TorchServe: what comes back is what the library itself computes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_server import PHOTOGRAPHS, QUICK, Connect, Live, assert_same_map, photograph
from PIL import Image
from small_server import LABELS, SMALL

from convlens import explain, image
from convlens.client import RemoteError
from convlens.client.protocol.inference_pb2 import PredictionsRequest
from convlens.client.protocol.inference_pb2_grpc import InferenceAPIsServiceStub
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Attribution, Explanation, Neighbourhood, Reply

PICTURES = ["chelsea.png", "coffee.png", "rocket.jpg"]
# Every method of the registry, those that take long with few windows, steps and samples.
FEW: dict[str, dict[str, Any]] = {
    "occlusion": {"window": 64, "stride": 40},
    "integrated_gradients": {"steps": 4},
    "smoothgrad": {"samples": 3, "seed": 5},
    "score_cam": {"top": 4},
    "rise": {"masks": 4, "seed": 5},
    "gradient_shap": {"samples": 3, "seed": 5},
}
METHODS = [{"method": name, "options": FEW.get(name, {})} for name in explain.available_methods()]


def by_engine(live: Live, picture: bytes, **asked: Any) -> Reply:
    params = parse_params({"output": ["array"], **asked})
    with _as_many_threads_as_a_worker_has():
        (reply,) = live.engine.run([Request(image.decode(picture), params)])
    assert isinstance(reply, Reply), reply
    return reply


@contextmanager
def _as_many_threads_as_a_worker_has() -> Iterator[None]:
    """One. Other numbers of threads add in another order, and along the path of integrated gradients many activations
    lie at a ReLU's 0, where that moves gradients by up to 5e-4.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def wanted(live: Live) -> Reply:
    """What the engine says of the cat by every method."""
    return by_engine(live, photograph(), methods=METHODS, topk=7)


def assert_same(found: Explanation, wanted: Explanation) -> None:
    assert (found.id, found.method, found.target_label) == (wanted.id, wanted.method, wanted.target_label)
    assert found.result.options == wanted.result.options
    if isinstance(wanted.result, Neighbourhood):
        assert isinstance(found.result, Neighbourhood)
        (near,), (expected,) = found.result.neighbours_NM, wanted.result.neighbours_NM
        assert [(one.id, one.label, one.thumbnail) for one in near] == [
            (one.id, one.label, one.thumbnail) for one in expected
        ]
        np.testing.assert_allclose([one.distance for one in near], [one.distance for one in expected], rtol=1e-4)
        return
    assert isinstance(found.result, Attribution)
    assert found.result.values_NCHW.dtype == np.float32
    assert_same_map(found.result.values_NCHW, wanted.result.values_NCHW)
    assert found.result.extras.keys() == wanted.result.extras.keys()
    for name, values in wanted.result.extras.items():
        assert_same_map(found.result.extras[name], values)
    np.testing.assert_array_equal(found.result.target_N, wanted.result.target_N)
    np.testing.assert_allclose(found.result.score_N, wanted.result.score_N, rtol=1e-4)
    facts = ("weights_sha256", "target_kind", "input_space", "dtype", "precision", "layer", "seed", "relu_calls_ruled")
    assert [getattr(found.result.meta, fact) for fact in facts] == [getattr(wanted.result.meta, fact) for fact in facts]


@pytest.mark.parametrize("form", ["safetensors", "json"])
def test_every_method_and_every_prediction_is_the_engine_s(connect: Connect, wanted: Reply, form: str) -> None:
    explanations: list[Explanation] = []
    # In two requests: the arrays of all methods as JSON are more than one reply may have.
    for part in (METHODS[::2], METHODS[1::2]):
        found = connect(form=form).explain(PHOTOGRAPHS / "chelsea.png", methods=part, topk=7, request_id="r-7")
        explanations += found.explanations
    assert [one.id for one in wanted.explanations] == list(explain.available_methods())
    for one, expected in zip(sorted(explanations, key=lambda each: each.id), wanted.explanations, strict=True):
        assert_same(one, expected)
    assert [(one.index, one.label) for one in found.predictions] == [
        (one.index, one.label) for one in wanted.predictions
    ]
    for figure in ("probability", "logit"):
        np.testing.assert_allclose(
            [getattr(one, figure) for one in found.predictions],
            [getattr(one, figure) for one in wanted.predictions],
            rtol=1e-4,
        )
    assert found.placement == wanted.placement
    assert (found.model_name, found.weights_sha256, found.request_id) == (QUICK, wanted.weights_sha256, "r-7")


def test_predictions_alone_bring_no_explanation(connect: Connect, wanted: Reply) -> None:
    found = connect().predict(photograph(), 3)
    assert [one.index for one in found.predictions] == [one.index for one in wanted.predictions[:3]]
    assert found.explanations == ()


def test_without_methods_the_archive_s_own_are_answered(connect: Connect, live: Live) -> None:
    found = connect().explain(photograph())
    assert tuple(one.method for one in found.explanations) == live.engine.options.default_methods


def test_parameters_reach_the_server(connect: Connect, live: Live) -> None:
    asked: dict[str, Any] = {
        "methods": ["saliency"],
        "target": "espresso",
        "dtype": "<f2",
        "reduce": "abs_max",
        "size": "original",
        "output": ["array", "heatmap"],
    }
    (found,) = connect().explain(photograph(), **asked).explanations
    (expected,) = by_engine(live, photograph(), methods=["saliency"], target="espresso").explanations
    assert found.target_label == "espresso"
    assert isinstance(found.result, Attribution)
    assert isinstance(expected.result, Attribution)
    height, width = np.asarray(Image.open(io.BytesIO(photograph()))).shape[:2]
    assert found.result.values_NCHW.dtype == np.float16
    assert found.result.values_NCHW.shape == (1, 1, height, width)
    # Placed in the original without being scaled beyond the map's own largest value; half precision has 11 bits.
    assert found.result.values_NCHW.max() == pytest.approx(np.abs(expected.result.values_NCHW).max(), rel=0.3)
    assert found.heatmap_png.startswith(b"\x89PNG")


def test_a_neuron_is_explained_by_the_server_as_by_the_engine(connect: Connect, live: Live) -> None:
    """Where its channel is strongest, which the reply says."""
    asked: dict[str, Any] = {"methods": ["guided_backprop"], "target": {"layer": "blocks.2.0", "channel": 7}}
    (found,) = connect().explain(photograph(), **asked).explanations
    (expected,) = by_engine(live, photograph(), **asked).explanations
    assert isinstance(found.result, Attribution)
    assert isinstance(expected.result, Attribution)
    assert found.result.neurons_N == expected.result.neurons_N
    assert found.result.neurons_N[0].y is not None
    assert_same_map(found.result.values_NCHW, expected.result.values_NCHW)
    with pytest.raises(RemoteError, match=r"did you mean blocks\.2\.1, blocks\.2\.0") as caught:
        connect().explain(photograph(), methods=["saliency"], target={"layer": "blocks.2.O", "channel": 7})
    assert (caught.value.status, caught.value.field) == (422, "target.layer")


def test_an_overlay_is_the_engine_s_png(connect: Connect, live: Live) -> None:
    asked = {"methods": [{"method": "occlusion", "options": {"window": 64, "stride": 64}}], "target": "cup"}
    (expected,) = by_engine(live, photograph(), output=["overlay"], **asked).explanations
    found = connect().overlay(photograph(), "occlusion", options={"window": 64, "stride": 64}, target="cup")
    pixels, wanted = (np.asarray(Image.open(io.BytesIO(png))).astype(int) for png in (found, expected.overlay_png))
    assert pixels.shape == wanted.shape
    assert np.abs(pixels - wanted).max() <= 1  # the same map but for the last bits of its floats


def test_a_heatmap_in_the_size_of_the_picture(connect: Connect) -> None:
    found = Image.open(io.BytesIO(connect().overlay(photograph(), "saliency", size="original")))
    assert found.size == Image.open(io.BytesIO(photograph())).size
    heatmap = Image.open(io.BytesIO(connect().overlay(photograph(), "saliency", kind="heatmap")))
    assert heatmap.size == (224, 224)


def test_replies_beyond_the_four_megabytes_that_grpc_takes_by_default(connect: Connect) -> None:
    methods = [{"method": "saliency", "id": f"m{number}"} for number in range(9)]
    found = connect().explain(photograph(), methods=methods)
    values = [one.result.values_NCHW for one in found.explanations if isinstance(one.result, Attribution)]
    assert sum(map(np.size, values)) * 4 > 5_000_000
    for other in values[1:]:
        np.testing.assert_array_equal(other, values[0])


def test_labels_of_any_script_come_back_and_name_targets(connect_small: Connect) -> None:
    client = connect_small(model=SMALL)
    found = client.explain(photograph(), methods=["saliency"], target="🦔")
    assert found.explanations[0].target_label == "🦔"
    assert all(one.label == LABELS[one.index] for one in found.predictions)
    with pytest.raises(RemoteError, match="犰狳 3 – „å“") as caught:
        client.explain(photograph(), methods=["saliency"], target="Gürteltier 犰狳 3")
    assert caught.value.field == "target"


def test_a_path_its_bytes_and_the_opened_picture_are_one(connect: Connect) -> None:
    client, path = connect(), PHOTOGRAPHS / "coffee.png"
    sent: list[Any] = [path, str(path), path.read_bytes(), Image.open(path)]
    replies = [client.predict(one, request_id="same") for one in sent]
    first, *others = (replace(reply, timing_ms={}) for reply in replies)
    assert first.predictions[0].label == "espresso"
    assert others == [first] * 3


def test_many_pictures_come_back_in_order_with_the_bad_ones_errors(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(photograph("rocket.jpg")[:4000])
    given = [PHOTOGRAPHS / name for name in PICTURES]
    given = [given[0], tmp_path / "absent.jpg", given[1], tmp_path / "broken.jpg", given[2]]
    client = connect()
    found = list(client.explain_many(iter(given), at_once=3, methods=["saliency"]))
    alone = [client.predict(given[place]) for place in (0, 2, 4)]
    assert [reply.predictions[0].label for reply in (found[0], found[2], found[4])] == [
        reply.predictions[0].label for reply in alone
    ]
    assert "absent.jpg" in found[1].message
    assert (type(found[3]), found[3].status) == (RemoteError, 400)


def test_one_client_for_eight_threads(connect: Connect, live: Live) -> None:
    client = connect()
    names = PICTURES * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: client.explain(photograph(name), methods=["saliency"]), names))
    expected = {name: by_engine(live, photograph(name), methods=["saliency"]) for name in PICTURES}
    for name, reply in zip(names, found, strict=True):
        assert reply.predictions[0].index == expected[name].predictions[0].index
        assert_same(reply.explanations[0], expected[name].explanations[0])


def test_a_version_is_asked_for_by_its_name(connect: Connect) -> None:
    assert connect(version="1.0").predict(photograph()).model_version == "1.0"


def test_a_model_that_answers_is_ready(connect: Connect) -> None:
    assert connect().ready()


def test_the_time_of_sending_reaches_the_server(connect: Connect) -> None:
    reply = connect().explain(photograph(), methods=["saliency"], deadline_ms=30_000)
    assert not [warning for warning in reply.warnings if "sent_at" in warning]
    with pytest.raises(RemoteError, match="deadline_ms") as caught:
        connect().explain(photograph(), methods=["occlusion"], deadline_ms=0.01)
    assert (caught.value.status, caught.value.type) == (504, "DeadlineError")


def test_a_stream_gets_its_one_reply_and_the_worker_lives(live: Live) -> None:
    grpc = pytest.importorskip("grpc")
    before = live.pids()
    token = (("authorization", live.server.headers("inference")["Authorization"]),)
    with grpc.insecure_channel(live.server.grpc_address) as channel:
        stub = InferenceAPIsServiceStub(channel)
        request = PredictionsRequest(model_name=QUICK, input={"data": photograph(), "params": b'{"topk": 1}'})
        bodies = [one.prediction for one in stub.StreamPredictions(request, metadata=token, timeout=30)]
        after = stub.Predictions(request, metadata=token, timeout=30).prediction
    assert len(bodies) == 1
    assert b'"label":"tiger cat"' in bodies[0]
    assert b'"label":"tiger cat"' in after
    assert live.pids() == before
