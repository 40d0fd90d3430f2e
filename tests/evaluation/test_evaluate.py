"""A whole evaluation on a small network: its records, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_cache import GraphCache
from nets import classifier
from small_evaluations import METHODS, QUICK, SIDE, small_model, write_images
from torch import nn

import convlens
from convlens.errors import RequestError, UnsupportedModelError
from convlens.evaluation.baselines import BASELINES, baseline_map
from convlens.evaluation.evaluate import evaluate
from convlens.evaluation.perturbation import CurveProtocol
from convlens.explain import GraphModel, get
from convlens.models import Classifier
from convlens.runtime.graph_set import GraphSet
from convlens.runtime.onnx_runtime import OnnxRuntime


@pytest.fixture(scope="module")
def model() -> Classifier:
    return small_model()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 5)


def test_every_image_gets_a_record_with_every_method_and_baseline(model: Classifier, images: Path) -> None:
    evaluation = evaluate(model, images, methods=METHODS, **QUICK)
    assert [record["id"] for record in evaluation.records] == [f"{n:02}.png" for n in range(5)]
    for record in evaluation.records:
        assert list(record["methods"]) == [*METHODS, *BASELINES]
        for method in record["methods"].values():
            values = method["values"]
            assert values["faithfulness"] == pytest.approx(values["insertion"] - values["deletion"])
            assert np.trapezoid(method["curves"]["deletion"]["logit"], dx=1 / 4) == pytest.approx(
                values["deletion_logit"], abs=1e-5
            )


def test_the_target_is_the_predicted_class(model: Classifier, images: Path) -> None:
    evaluation = evaluate(model, images, methods=["saliency"], **QUICK)
    for record in evaluation.records:
        x_CHW = convlens.image.prepare(convlens.image.read(images / record["id"]), model.spec).x_CHW
        with torch.no_grad():
            logits_K = model.module(torch.as_tensor(x_CHW)[None])[0]
        assert record["target"] == int(logits_K.argmax())
        assert record["logit"] == pytest.approx(float(logits_K.max()), abs=1e-5)
        assert record["probability"] == pytest.approx(float(logits_K.softmax(0).max()), abs=1e-5)
        assert record["correct"] is None


def test_labels_of_a_table_say_what_is_right(model: Classifier, images: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,class_index\n" + "".join(f"{n:02}.png,{n % 3}\n" for n in range(5)))
    evaluation = evaluate(model, images, methods=["saliency"], labels=table, **QUICK)
    for n, record in enumerate(evaluation.records):
        assert record["true_label"] == f"class {n % 3}"
        assert record["correct"] == (record["target"] == n % 3)


def test_the_true_class_can_be_the_target(model: Classifier, tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "class 2", 2)
    evaluation = evaluate(
        model,
        tmp_path / "images",
        methods=["saliency"],
        labels="folder",
        target="true",
        **QUICK,
    )
    assert [(record["target"], record["label"]) for record in evaluation.records] == [(2, "class 2")] * 2


def test_an_unreadable_image_is_listed_and_leaves_the_others(model: Classifier, images: Path) -> None:
    (images / "02.png").write_bytes(b"no image at all")
    evaluation = evaluate(model, images, methods=["saliency"], **QUICK)
    (failure,) = evaluation.summary["failures"]
    assert failure["id"] == "02.png"
    assert evaluation.summary["pictures"] == 4


def test_one_image_gives_figures_and_no_claims(model: Classifier, tmp_path: Path) -> None:
    evaluation = evaluate(model, write_images(tmp_path / "one", 1), methods=METHODS, **QUICK)
    estimate = evaluation.summary["methods"]["saliency"]["metrics"]["faithfulness"]
    assert (estimate["low"], estimate["high"], estimate["n"]) == (None, None, 1)
    assert evaluation.recommended == ()
    assert evaluation.verdict["headline"].startswith("One picture allows no verdict")


def test_no_readable_image_is_refused(model: Classifier, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"none of 1 images could be used; a\.png: "):
        evaluate(model, tmp_path, methods=["saliency"], **QUICK)


def test_a_method_that_the_network_cannot_do_says_why(images: Path) -> None:
    smooth = small_model(nn.SiLU)
    evaluation = evaluate(smooth, images, methods=["guided_backprop", "saliency"], **QUICK)
    failed = evaluation.summary["methods"]["guided_backprop"]["failed"]
    assert failed["count"] == 5
    assert "ReLU" in failed["reason"]
    assert evaluation.summary["methods"]["saliency"]["failed"]["count"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["salience"]}, "no method 'salience'; did you mean saliency"),
        ({"methods": ["neighbours"]}, "neighbours gives images and no map"),
        ({"methods": {"occlusion": {"windw": 4}}}, "occlusion has no option 'windw'; did you mean window"),
        ({"metrics": ["insertoin"]}, "no metric 'insertoin'; did you mean insertion"),
        ({"metrics": []}, "no metrics were given"),
        ({"baselines": ["center"]}, "no baseline 'center'; did you mean centre"),
        ({"methods": [], "baselines": []}, "no methods were given"),
        ({"costly_pictures": 0}, "costly_pictures=0; use 1 or more"),
        ({"seed": -1}, "seed=-1; use 0 or more"),
        ({"seed": -1, "protocol": CurveProtocol(4)}, "seed=-1; use 0 or more"),
        ({"target": "true"}, "target='true' explains the true class, which only labels can tell"),
        ({"target": "best"}, "no target 'best'; there are: predicted, true"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_any_work(
    model: Classifier, images: Path, options: dict[str, Any], message: str
) -> None:
    began: list[object] = []
    with pytest.raises(RequestError, match=message):
        evaluate(model, images, on_picture=lambda *step: began.append(step), **options)
    assert not began


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n00.png,class 1\n", r"4 of 5 images have no label in .*, the first is '01\.png'"),
        ("file,name\n00.png,class 1\n", "needs a first line that names the columns file and label or class_index"),
        ("file,label\n" + "".join(f"{n:02}.png,class 9\n" for n in range(5)), "the label of '00.png': no class"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    model: Classifier, images: Path, tmp_path: Path, table: str, message: str
) -> None:
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(RequestError, match=message):
        evaluate(model, images, methods=["saliency"], labels=tmp_path / "labels.csv", **QUICK)


# --- metrics that cost more -------------------------------------------------------------------------------------------


def test_costly_metrics_are_measured_on_some_images_evenly_spread(model: Classifier, images: Path) -> None:
    evaluation = evaluate(
        model,
        images,
        methods=["saliency", "grad_cam"],
        metrics=["deletion", "road", "infidelity", "sensitivity", "randomisation"],
        baselines=["centre"],
        protocol=CurveProtocol(4),
        costly_pictures=3,
    )
    costly = [
        n for n, record in enumerate(evaluation.records) if "infidelity" in record["methods"]["saliency"]["values"]
    ]
    assert costly == [0, 2, 4]
    method = evaluation.records[2]["methods"]["saliency"]
    assert set(method["values"]) == {
        "deletion", "deletion_logit", "road_morf", "road_lerf", "infidelity", "max_sensitivity", "randomised_top",
        "randomised_all",
    }  # fmt: skip
    assert evaluation.settings["stages"] == ["4", "0"]
    assert len(method["curves"]["randomisation"]["cascading"]["spearman"]) == 2
    baseline = evaluation.records[2]["methods"]["centre"]["values"]
    assert {"road_morf", "infidelity"} < set(baseline)
    assert not {"max_sensitivity", "randomised_top"} & set(baseline)
    assert evaluation.summary["methods"]["saliency"]["metrics"]["infidelity"]["n"] == 3


def test_a_method_of_too_many_passes_gets_no_sanity_check(model: Classifier, images: Path) -> None:
    evaluation = evaluate(
        model,
        images,
        methods={"rise": {"masks": 201}, "score_cam": {}, "occlusion": {"window": 8, "stride": 8}},
        metrics=["randomisation"],
        baselines=[],
        costly_pictures=1,
    )
    measured = [name for name, method in evaluation.records[0]["methods"].items() if method["values"]]
    assert measured == ["occlusion"]


def test_marked_objects_are_compared_with_every_map(model: Classifier, tmp_path: Path) -> None:
    images = write_images(tmp_path / "squares", 5, SIDE, SIDE)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("file,xmin,ymin,xmax,ymax\n" + "".join(f"{n:02}.png,0,0,8,16\n" for n in range(4)))
    evaluation = evaluate(
        model, images, methods=["saliency"], metrics=["localisation"], baselines=["centre", "edges"], boxes=boxes
    )
    values = [record["methods"]["edges"]["values"] for record in evaluation.records]
    for record, each in zip(evaluation.records[:4], values, strict=False):
        x_CHW = convlens.image.prepare(convlens.image.read(images / record["id"]), model.spec).x_CHW
        map_HW = baseline_map("edges", x_CHW, id=record["id"], seed=0)
        assert each["energy_inside"] == pytest.approx(map_HW[:, :8].sum() / map_HW.sum())
        assert each["pointing_game"] == float(map_HW.argmax() % SIDE < 8)
    assert values[4] == {}
    assert evaluation.records[4]["unmarked"] == "no object is marked in it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["localisation"]}, "localisation compares maps with marked objects; give boxes too"),
        ({"metrics": ["deletion"], "boxes": {}}, "boxes are for localisation; add it to the metrics"),
    ],
)
def test_boxes_and_localisation_go_together(
    model: Classifier, images: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        evaluate(model, images, methods=["saliency"], **options)


def test_sanity_checks_take_the_maps_that_are_there(
    model: Classifier, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages make three randomised networks; the trained one is explained once."""
    explained: list[str] = []
    method = get("saliency")
    inner = method.run

    def counted(forward: Any, target_N: Any, **options: Any) -> Any:
        explained.append(forward.spec.weights_sha256)
        return inner(forward, target_N, **options)

    monkeypatch.setitem(vars(method), "run", counted)
    evaluate(model, images / "00.png", methods=["saliency"], metrics=["randomisation"], baselines=[])
    assert explained == [model.spec.weights_sha256, "", "", ""]


def test_by_default_a_model_of_graphs_gets_no_sanity_checks(images: Path, exported: GraphCache) -> None:
    network = small_model()
    graphs = [OnnxRuntime(exported(network, kind), providers="cpu") for kind in ("embedding", "saliency")]
    model = GraphModel(network.spec, GraphSet(tuple(graphs)), graphs[0], "graphs:here")
    evaluation = evaluate(model, images / "00.png", methods=["saliency"], protocol=CurveProtocol(4))
    assert evaluation.settings["metrics"] == ["insertion", "deletion", "sparseness"]
    with pytest.raises(UnsupportedModelError, match="randomisation needs the network itself"):
        evaluate(model, images, methods=["saliency"], metrics=["randomisation"])


class NotForOthers(nn.Module):
    """The scores are NaN for images that are grey in the first pixel, as deletion makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grey = (x[:, :, 0, 0].abs().sum(1) == 0)[:, None]
        return torch.where(grey, torch.nan, self.head(x.mean((2, 3))))


def test_a_map_on_which_the_model_fails_leaves_the_others(images: Path) -> None:
    model = classifier(NotForOthers(), classes=3, crop=SIDE, embedding_layer="head", gradcam_layer="")
    options = {"methods": ["saliency"], "metrics": ["deletion", "sparseness"], "protocol": CurveProtocol(4)}
    (record,) = evaluate(model, images / "00.png", **options).records
    assert all("NaN" in record["methods"][name]["error"] for name in ("saliency", "centre", "edges"))
