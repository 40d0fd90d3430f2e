"""A whole evaluation on a small network: its records, what it refuses, and what a kill leaves of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import classifier
from PIL import Image
from torch import nn

import convlens
from convlens.errors import RequestError
from convlens.evaluation.baselines import BASELINES, baseline_map
from convlens.evaluation.evaluate import Evaluation, evaluate
from convlens.evaluation.journal import read_evaluation, read_records
from convlens.evaluation.perturbation import CurveProtocol
from convlens.explain import get
from convlens.models import Classifier, load

SIDE = 16
METHODS = ("saliency", "grad_cam", "guided_backprop")
QUICK = {"metrics": ("insertion", "deletion", "sparseness"), "protocol": CurveProtocol(4)}


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), activation(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 3)
    )


@pytest.fixture(scope="module")
def model() -> Classifier:
    return classifier(network(), classes=3, crop=SIDE, embedding_layer="4", gradcam_layer="1")


def write_images(folder: Path, count: int, height: int = 20, width: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for n in range(count):
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{n:02}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 5)


def timeless(value: Any) -> Any:
    """Without seconds, the only part that may differ from run to run."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key != "seconds"}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def complete_options(name: str) -> dict[str, Any]:
    return {option: default for option, (_, default) in get(name).options.items()}


def same_but_rounding(records: Any, expected: Any) -> bool:
    """Seconds aside; numbers of processes with other threads differ in their last digits."""
    if isinstance(expected, dict):
        keys = expected.keys() - {"seconds"}
        return records.keys() - {"seconds"} == keys and all(same_but_rounding(records[k], expected[k]) for k in keys)
    if isinstance(expected, list):
        return len(records) == len(expected) and all(map(same_but_rounding, records, expected))
    return bool(records == pytest.approx(expected, abs=1e-4)) if isinstance(expected, float) else records == expected


def test_every_image_gets_a_record_with_every_method_and_baseline(model: Classifier, images: Path) -> None:
    evaluation = evaluate(model, images, methods=METHODS, **QUICK)  # type: ignore[arg-type]
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
    evaluation = evaluate(model, images, methods=["saliency"], **QUICK)  # type: ignore[arg-type]
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
    evaluation = evaluate(model, images, methods=["saliency"], labels=table, **QUICK)  # type: ignore[arg-type]
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
        **QUICK,  # type: ignore[arg-type]
    )
    assert [(record["target"], record["label"]) for record in evaluation.records] == [(2, "class 2")] * 2


def test_an_unreadable_image_is_listed_and_leaves_the_others(model: Classifier, images: Path) -> None:
    (images / "02.png").write_bytes(b"no image at all")
    evaluation = evaluate(model, images, methods=["saliency"], **QUICK)  # type: ignore[arg-type]
    (failure,) = evaluation.summary["failures"]
    assert failure["id"] == "02.png"
    assert evaluation.summary["pictures"] == 4


def test_one_image_gives_figures_and_no_claims(model: Classifier, tmp_path: Path) -> None:
    evaluation = evaluate(model, write_images(tmp_path / "one", 1), methods=METHODS, **QUICK)  # type: ignore[arg-type]
    estimate = evaluation.summary["methods"]["saliency"]["metrics"]["faithfulness"]
    assert (estimate["low"], estimate["high"], estimate["n"]) == (None, None, 1)
    assert evaluation.recommended == ()
    assert evaluation.verdict["headline"].startswith("One picture allows no verdict")


def test_no_readable_image_is_refused(model: Classifier, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"none of 1 images could be used; a\.png: "):
        evaluate(model, tmp_path, methods=["saliency"], **QUICK)  # type: ignore[arg-type]


def test_a_method_that_the_network_cannot_do_says_why(images: Path) -> None:
    smooth = classifier(network(nn.SiLU), classes=3, crop=SIDE, embedding_layer="4", gradcam_layer="1")
    evaluation = evaluate(smooth, images, methods=["guided_backprop", "saliency"], **QUICK)  # type: ignore[arg-type]
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
        evaluate(model, images, methods=["saliency"], labels=tmp_path / "labels.csv", **QUICK)  # type: ignore[arg-type]


# --- the folder -------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt_after(count: int) -> Any:
    def on_picture(done: int, total: int, stage: str) -> None:
        if done == count and not stage:
            raise Interrupted

    return on_picture


def run(model: Classifier, images: Path, out: Path, **options: Any) -> Evaluation:
    return evaluate(model, images, methods=METHODS, out=out, **{**QUICK, **options})


@pytest.mark.parametrize("count", [0, 2, 5])
def test_an_interrupted_evaluation_ends_with_what_one_run_gives(
    model: Classifier, images: Path, tmp_path: Path, count: int
) -> None:
    whole = run(model, images, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(model, images, tmp_path / "cut", on_picture=interrupt_after(count))
    assert not (tmp_path / "cut" / "evaluation.json").exists()
    evaluated: list[int] = []
    resumed = run(model, images, tmp_path / "cut", on_picture=lambda done, *_: evaluated.append(done))
    assert evaluated[0] == count
    assert timeless(list(resumed.records)) == timeless(list(whole.records))
    assert timeless(read_evaluation(tmp_path / "cut")) == timeless(read_evaluation(tmp_path / "whole"))
    assert not (tmp_path / "cut" / ".partial").exists()


def test_half_a_line_is_made_again(model: Classifier, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(model, images, out, on_picture=interrupt_after(3))
    journal = out / ".partial" / "records.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    resumed = run(model, images, out)
    assert timeless(read_records(out)) == timeless(list(run(model, images, tmp_path / "whole").records))
    assert len(resumed.records) == 5


def test_a_killed_process_is_resumed(tmp_path: Path) -> None:
    """SIGKILL while images are evaluated; the command is then repeated."""
    images = write_images(tmp_path / "images", 6)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef factory():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), "
        "nn.Linear(96, 3))\n"
    )
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    command = [sys.executable, "-c", "from convlens.cli.main import main; main()", "evaluate", str(images), "--model"]
    name = f"file:{tmp_path / 'net.py'}:factory?size=224&labels={tmp_path / 'names.txt'}"
    command.append(name)
    command += ["--methods", "saliency,occlusion", "--metrics", "insertion,deletion", "--device", "cpu"]
    environment = {**os.environ, "CONVLENS_ACCELERATE": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "out")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal, deadline = tmp_path / "out" / ".partial" / "records.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    done = journal.read_bytes().count(b"\n")
    assert 2 <= done < 6
    subprocess.run(
        [*command, "-o", str(tmp_path / "out")], env=environment, check=True, timeout=200, capture_output=True
    )
    evaluate(
        load(name, device="cpu", precision="float32"),
        images,
        methods={method: complete_options(method) for method in ("saliency", "occlusion")},
        metrics=["insertion", "deletion"],
        out=tmp_path / "whole",
    )
    assert same_but_rounding(read_records(tmp_path / "out"), read_records(tmp_path / "whole"))
    assert read_evaluation(tmp_path / "out")["settings"] == read_evaluation(tmp_path / "whole")["settings"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"evaluation.json", "records.jsonl", "methods.csv", "pictures.csv", "index.html", "maps"}


def test_other_settings_are_refused_by_name(model: Classifier, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(model, images, out, on_picture=interrupt_after(2))
    with pytest.raises(RequestError, match="begun with other settings: steps was 4 and is 5"):
        run(model, images, out, protocol=CurveProtocol(5))
    assert len(run(model, images, out, protocol=CurveProtocol(5), overwrite=True).records) == 5


def test_a_finished_folder_is_not_touched_unless_asked_to(model: Classifier, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, images, out)
    before = (out / "evaluation.json").read_bytes()
    with pytest.raises(RequestError, match="is finished already; choose a new folder, or --overwrite"):
        run(model, images, out)
    assert (out / "evaluation.json").read_bytes() == before
    with pytest.raises(Interrupted):
        run(model, images, out, overwrite=True, on_picture=interrupt_after(2))
    assert (out / "evaluation.json").read_bytes() == before


def test_a_folder_with_other_things_is_refused(model: Classifier, images: Path) -> None:
    with pytest.raises(RequestError, match=r"holds other things than an evaluation \(00\.png, 01\.png, 02\.png\)"):
        run(model, images, images)


def test_a_folder_without_an_evaluation_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no finished evaluation; make one by `convlens evaluate"):
        read_evaluation(tmp_path)


def test_records_are_plain_json(model: Classifier, images: Path, tmp_path: Path) -> None:
    evaluation = run(model, images, tmp_path / "out")
    assert json.loads(json.dumps(list(evaluation.records), allow_nan=False)) == read_records(tmp_path / "out")


# --- baselines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random pixels", "random blobs"])
def test_a_random_baseline_is_the_image_s_own(name: str) -> None:
    x_CHW = np.zeros((3, 32, 32), np.float32)
    first = baseline_map(name, x_CHW, id="a.png", seed=0)
    assert np.array_equal(first, baseline_map(name, x_CHW, id="a.png", seed=0))
    for other in (baseline_map(name, x_CHW, id="b.png", seed=0), baseline_map(name, x_CHW, id="a.png", seed=1)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.5


def test_the_centre_is_most_relevant_in_the_middle() -> None:
    map_HW = baseline_map("centre", np.zeros((3, 5, 7), np.float32), id="", seed=0)
    assert np.unravel_index(map_HW.argmax(), map_HW.shape) == (2, 3)
    assert map_HW[0, 0] == map_HW[4, 6] == map_HW.min()


def test_edges_are_sobel_s_gradient_of_the_channels_mean() -> None:
    ramp_CHW = np.broadcast_to(np.arange(6.0), (3, 5, 6)) * np.array([1.0, 2.0, 3.0])[:, None, None]
    map_HW = baseline_map("edges", ramp_CHW, id="", seed=0)
    # The mean rises by 2 a pixel: 2 * 2 over both sides, times the kernel's 1 + 2 + 1; half of it at the border.
    assert map_HW[2].tolist() == [8.0, 16.0, 16.0, 16.0, 16.0, 8.0]


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
