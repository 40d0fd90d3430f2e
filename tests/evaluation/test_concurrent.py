"""Images evaluated at once: the records of one after another, whatever the number of workers."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import classifier
from small_evaluations import QUICK, small_model, write_images
from torch import nn

from convlens.errors import RequestError
from convlens.evaluation.concurrent import default_workers
from convlens.evaluation.evaluate import Evaluation, evaluate
from convlens.evaluation.picture import EvaluationPlan
from convlens.instrument import copy_of
from convlens.models import Classifier

# Rules for ReLUs, hooks in layers, seeded noise, sweeps: what a method sets must not reach another image's map.
METHODS = ("saliency", "guided_backprop", "deconvnet", "grad_cam", "guided_grad_cam", "smoothgrad", "occlusion")
OPTIONS = {name: {"window": 6, "stride": 5} if name == "occlusion" else {} for name in METHODS}


@pytest.fixture(scope="module")
def model() -> Classifier:
    return small_model()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 9)


def run(model: Classifier, images: Path, workers: int | None, **options: Any) -> Evaluation:
    return evaluate(model, images, methods=OPTIONS, workers=workers, **{**QUICK, **options})


def numbers(evaluation: Evaluation) -> dict[str, list[float]]:
    """Each method's value in each image, by method and metric."""
    return {
        f"{name} {metric}": [record["methods"][name]["values"][metric] for record in evaluation.records]
        for name in METHODS
        for metric in ("insertion", "deletion", "sparseness")
    }


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_give_the_records_of_one_in_their_order(model: Classifier, images: Path, workers: int) -> None:
    one, several = run(model, images, 1), run(model, images, workers)
    assert [record["id"] for record in several.records] == [f"{n:02}.png" for n in range(9)]
    found = numbers(several)
    for name, values in numbers(one).items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


def test_workers_run_at_once(model: Classifier, images: Path) -> None:
    """Each of two first images waits until the other has begun as well."""
    both = threading.Barrier(2, timeout=60)
    waited: set[str] = set()
    networks: set[int] = set()

    def meet(network: nn.Module, _: object) -> None:
        networks.add(next(network.parameters()).data_ptr())
        name = threading.current_thread().name
        if name not in waited:
            waited.add(name)
            both.wait()

    meeting = copy_of(model.module)
    meeting.register_forward_pre_hook(meet)
    evaluate(replace(model, module=meeting), images, methods=["saliency"], workers=2, **QUICK)
    assert len(waited) == len(networks) == 2, "each with weights of its own"


def test_sanity_checks_are_the_same_by_several_workers(model: Classifier, images: Path) -> None:
    options = {"metrics": ("randomisation",), "costly_pictures": 4, "baselines": ()}
    one, two = (run(model, images, workers, **options) for workers in (1, 2))
    for expected, record in zip(one.records, two.records, strict=True):
        for name in METHODS:
            assert record["methods"][name]["values"] == pytest.approx(
                expected["methods"][name]["values"], abs=1e-4, nan_ok=True
            )


def test_an_unreadable_image_leaves_the_others(model: Classifier, images: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = {"broken.png": tmp_path / "broken.png", **{path.name: path for path in sorted(images.iterdir())}}
    evaluation = evaluate(model, files, methods=["saliency"], workers=3, **QUICK)
    assert ["error" in record for record in evaluation.records] == [True, *[False] * 9]


def test_an_error_of_the_caller_s_ends_the_workers_at_the_next_method(model: Classifier, images: Path) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    slow = copy_of(model.module)
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.03))
    stages: list[str] = []
    begun = 0

    def on_picture(done: int, total: int, stage: str) -> None:
        nonlocal begun
        if stage:
            stages.append(stage)
        elif done == 1:
            begun = len(stages)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(model, module=slow), images, 2, on_picture=on_picture, baselines=())
    assert {thread.ident for thread in threading.enumerate()} <= before
    assert len(stages) - begun <= 3, f"who has just begun an image goes on with none of its {len(METHODS)} methods"


def test_torch_has_its_threads_again_afterwards(model: Classifier, images: Path) -> None:
    before = torch.get_num_threads()
    run(model, images, 3)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


@pytest.mark.parametrize(
    ("workers", "device", "message"),
    [(0, "cpu", "workers=0; use 1 or more"), (2, "cuda", "workers=2, but a GPU takes one image at a time")],
)
def test_workers_that_cannot_be_are_refused(
    model: Classifier, images: Path, workers: int, device: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        run(replace(model, device=torch.device(device)), images, workers)


def test_copies_of_large_weights_are_few() -> None:
    plan = EvaluationPlan({}, (), ("insertion",))
    small, huge = (classifier(nn.Linear(n, n, device="meta"), classes=2) for n in (4, 30_000))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        # 30,000 squared in float32 are 3.6 GB: a second copy would take more than 4 GiB.
        assert [default_workers(model, plan, pictures=100) for model in (small, huge)] == [4, 1]
        assert default_workers(small, plan, pictures=3) == 3
    finally:
        torch.set_num_threads(threads)
