"""Many threads, one model object."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import nets
import numpy as np
import pytest
import torch
from torch import nn

from convlens.explain import ForwardPass, available_methods, run
from convlens.types import Attribution, Result

THREADS = 8
ROUNDS = 200
OPTIONS: dict[str, dict[str, Any]] = {
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
    "occlusion": {"window": 4, "stride": 4},
    "rise": {"masks": 20, "cells": 4},
    "gradient_shap": {"samples": 3},
}


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """So that sums are always taken in one order, and results can be held against each other bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numbers(result: Result) -> np.ndarray:
    if isinstance(result, Attribution):
        return result.values_NCHW
    return np.array([[neighbour.distance for neighbour in row] for row in result.neighbours_NM])


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.timeout(180)
@pytest.mark.slow
def test_eight_threads_with_different_images_and_methods_get_what_one_thread_gets() -> None:
    # trained by nobody, with in-place, functional and reused ReLUs; parameters that want gradients, as users leave them
    classifier = nets.classifier(nets.seeded(nets.Mixed).float(), classes=4, gradcam_layer="third")
    # DeepLIFT has no rule for the gate in that one
    gateless = nets.classifier(
        nets.seeded(lambda: nets.Sequential(nn.ReLU(inplace=True), classes=4)).float(), classes=4
    )
    pictures_NCHW = nets.pictures(THREADS, 3, 8, 8, dtype=torch.float32)
    names = available_methods()

    def explain(picture: int, name: str) -> np.ndarray:
        x_NCHW = pictures_NCHW[picture : picture + 1]
        network = gateless if name == "deep_lift" else classifier
        forward = ForwardPass(network, x_NCHW, gallery=nets.StubGallery())
        return numbers(run(name, forward, [picture % 4], OPTIONS.get(name)))

    alone = {(picture, name): explain(picture, name) for picture in range(THREADS) for name in names}
    together = threading.Barrier(THREADS)
    wrong: list[str] = []

    def work(picture: int) -> None:
        try:
            for round_ in range(ROUNDS):
                name = names[(picture + round_) % len(names)]
                together.wait(timeout=60)
                if not np.array_equal(explain(picture, name), alone[picture, name]):
                    wrong.append(f"round {round_}: {name} of picture {picture}")
        except BaseException:
            together.abort()
            raise

    with pytest.MonkeyPatch.context() as patch:
        raised: list[Any] = []
        patch.setattr(threading, "excepthook", raised.append)
        threads = [threading.Thread(target=work, args=[picture], daemon=True) for picture in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert raised == []
    assert wrong == []
    assert len({values.tobytes() for values in alone.values()}) == len(alone), (
        "all of them differ, so a mix-up would show"
    )
