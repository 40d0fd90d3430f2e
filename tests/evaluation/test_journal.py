"""The folder of an evaluation: what a kill leaves of it, and which runs may share it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from killable import Killable
from small_evaluations import METHODS, QUICK, run_command, small_model, write_images

from convlens.errors import RequestError
from convlens.evaluation.evaluate import Evaluation, evaluate
from convlens.evaluation.journal import read_evaluation, read_records
from convlens.evaluation.perturbation import CurveProtocol
from convlens.explain import get
from convlens.models import Classifier, load


@pytest.fixture(scope="module")
def model() -> Classifier:
    return small_model()


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
    name = f"file:{tmp_path / 'net.py'}:factory?size=224&labels={tmp_path / 'names.txt'}"
    command = ["evaluate", str(images), "--model", name, "-o", str(tmp_path / "out")]
    command += ["--methods", "saliency,occlusion", "--metrics", "insertion,deletion", "--device", "cpu"]
    process = Killable(run_command, command)
    journal, deadline = tmp_path / "out" / ".partial" / "records.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.is_alive():
        if journal.exists() and journal.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.02)
    assert process.is_alive(), "it ended before it could be killed"
    process.kill()
    done = journal.read_bytes().count(b"\n")
    assert 2 <= done < 6
    status, said = Killable(run_command, command).ended(within_s=200)
    assert status == 0, said
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
