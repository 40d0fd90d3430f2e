"""Every pass of a model runs in the model's precision, whatever torch's flags allow, and the results say in what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import torch
from engines import request
from PIL import Image
from torch import Tensor, nn
from torch_flags import BACKENDS, fresh_flags

from convlens.engine.engine import Engine, EngineOptions
from convlens.explain import ForwardPass, available_methods, run, torch_sweeps
from convlens.explain.neurons import run_neurons
from convlens.features.embedder import torch_embedder
from convlens.inspection.activations import activations
from convlens.inspection.patches import PatchGradients, find_patches
from convlens.instrument import precision, use_precision
from convlens.models import Classifier
from convlens.runtime.torch_runtime import TorchRuntime
from convlens.types import ArithmeticPrecision, Neuron, Reply

GRADIENTS = [name for name in available_methods() if name not in ("occlusion", "rise", "neighbours")]
OPTIONS: dict[str, dict[str, Any]] = {
    "occlusion": {"window": 4, "stride": 4},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
    "rise": {"masks": 20, "cells": 4},
    "gradient_shap": {"samples": 3},
}


class Watched(nn.Module):
    """Notes what torch's flag for products of matrices says during its passes, forwards and back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.seen: list[str] = []

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self._note()
        x = self.first(x_NCHW)
        if x.requires_grad:
            x.register_hook(self._note)
        return self.head(torch.relu(x).mean((2, 3)))

    def _note(self, *_: Tensor) -> None:
        self.seen.append(BACKENDS.mkldnn.matmul.fp32_precision)


@pytest.fixture(autouse=True)
def _as_a_user_s_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fresh_flags(monkeypatch):
        yield


def watched(asked: ArithmeticPrecision | None) -> tuple[Watched, Classifier]:
    module = nets.seeded(Watched).float().requires_grad_(False)
    assert isinstance(module, Watched)
    return module, replace(nets.classifier(module, classes=3), precision=asked)


def pictures() -> Tensor:
    return nets.pictures(2, 3, 8, 8, dtype=torch.float32)


def by_method(name: str) -> Callable[[Classifier, Path], object]:
    def explain(classifier: Classifier, _: Path) -> object:
        return run(name, ForwardPass(classifier, pictures(), gallery=nets.StubGallery()), [0, 2], OPTIONS.get(name))

    return explain


def of_a_neuron(classifier: Classifier, _: Path) -> object:
    return run_neurons("saliency", ForwardPass(classifier, pictures()), [Neuron("first", 1)] * 2)


def logits_alone(classifier: Classifier, _: Path) -> object:
    return ForwardPass(classifier, pictures()).logits_NK


def gradient_alone(classifier: Classifier, _: Path) -> object:
    return ForwardPass(classifier, pictures()).gradient("plain", np.array([0, 1]), method="saliency")


def runtime(classifier: Classifier, _: Path) -> object:
    made = TorchRuntime(classifier.module, "head", classifier.device, precision=classifier.precision)
    return made.logits(pictures()), torch_embedder(classifier, batch=2).embed(pictures().numpy())


def layer(classifier: Classifier, _: Path) -> object:
    return activations(classifier, pictures()[0].numpy(), layer="first")


def patches(classifier: Classifier, folder: Path) -> object:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    return find_patches(classifier, {"a": folder / "a.png"}, layer="first", k=1)


def patch_gradients(classifier: Classifier, _: Path) -> object:
    return list(PatchGradients(classifier, "first").each([Neuron("first", 1, 3, 3)], [pictures()[0].numpy()]))


PASSES: dict[str, Callable[[Classifier, Path], object]] = {
    **{name: by_method(name) for name in available_methods()},
    "neuron": of_a_neuron,
    "logits": logits_alone,
    "gradient": gradient_alone,
    "runtime": runtime,
    "activations": layer,
}
# Before they compute, they send marks through the network, whose values nobody sees.
INSPECTIONS = {"patches": patches, "patch gradients": patch_gradients}


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_runs_in_the_model_s_precision(name: str, tmp_path: Path) -> None:
    torch.set_float32_matmul_precision("medium")
    module, classifier = watched("float32")
    PASSES[name](classifier, tmp_path)
    assert set(module.seen) == {"ieee"}
    assert BACKENDS.mkldnn.matmul.fp32_precision == "bf16"
    module, classifier = watched(None)
    PASSES[name](classifier, tmp_path)
    assert set(module.seen) == {"bf16"}, "without a precision torch's flags are left alone"


def test_sweeps_that_are_kept_serve_a_model_of_another_precision() -> None:
    torch.set_float32_matmul_precision("medium")
    module, classifier = watched("float32")
    sweeps = torch_sweeps(classifier)
    run("occlusion", ForwardPass(classifier, pictures(), sweeps=sweeps), [0, 2], OPTIONS["occlusion"])
    module.seen.clear()
    unasked = replace(classifier, precision=None)
    run("occlusion", ForwardPass(unasked, pictures(), sweeps=sweeps), [0, 2], OPTIONS["occlusion"])
    assert set(module.seen) == {"bf16"}


@pytest.mark.parametrize("name", INSPECTIONS)
def test_inspections_compute_in_the_model_s_precision(name: str, tmp_path: Path) -> None:
    torch.set_float32_matmul_precision("medium")
    module, classifier = watched("float32")
    INSPECTIONS[name](classifier, tmp_path)
    assert module.seen[-1] == "ieee"
    assert BACKENDS.mkldnn.matmul.fp32_precision == "bf16"


# --- what results say -------------------------------------------------------------------------------------------------


@pytest.fixture
def cpu_taken_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags and arithmetic are told as if the CPU were a GPU that has TF32."""
    monkeypatch.setattr(precision, "_FLAGS", {"cpu": precision._FLAGS["cuda"]})
    monkeypatch.setattr(precision, "_has_tf32", lambda device: True)


def explained(name: str, asked: ArithmeticPrecision | None) -> Any:
    _, classifier = watched(asked)
    forward = ForwardPass(classifier, pictures(), gallery=nets.StubGallery())
    return run(name, forward, [0, 2], OPTIONS.get(name)).meta


@pytest.mark.usefixtures("cpu_taken_for_a_gpu")
@pytest.mark.parametrize("name", available_methods())
def test_gradients_in_tf32_that_nobody_asked_for_say_so_and_what_to_do(name: str) -> None:
    unasked = explained(name, None)
    assert unasked.precision == "tf32"
    warned = [text for text in unasked.warnings if "TF32" in text and "precision='float32'" in text]
    assert len(warned) == (name in GRADIENTS)
    asked = explained(name, "float32")
    assert asked.precision == "float32"
    assert not any("TF32" in text for text in asked.warnings)


@pytest.mark.usefixtures("cpu_taken_for_a_gpu")
def test_nobody_is_warned_of_what_the_process_chose() -> None:
    use_precision("tf32")
    BACKENDS.cudnn.allow_tf32 = True  # the CPU, which ``use_precision`` leaves in float32, stands for the GPU here
    assert (explained("saliency", None).precision, explained("saliency", None).warnings) == ("tf32", ())


def test_a_cpu_computes_in_float32_where_tf32_is_asked_for_and_says_so() -> None:
    meta = explained("saliency", "tf32")
    assert (meta.precision, meta.warnings) == ("float32", ())


def test_what_the_flags_allow_a_cpu_is_said() -> None:
    torch.set_float32_matmul_precision("medium")
    assert explained("saliency", None).precision == "bf16"


def test_float64_is_said() -> None:
    classifier = replace(nets.classifier(nets.seeded(Watched), classes=3), precision="float32")
    assert run("saliency", ForwardPass(classifier, pictures()), [0, 1]).meta.precision == "float64"


def test_a_model_in_half_sweeps_in_half_unless_told_otherwise() -> None:
    _, classifier = watched("half")
    forward, options = ForwardPass(classifier, pictures()), OPTIONS["occlusion"]
    assert run("occlusion", forward, [0, 2], options).options["precision"] == "half"
    in_full = run("occlusion", forward, [0, 2], {**options, "precision": "float32"})
    assert (in_full.options["precision"], in_full.meta.precision) == ("float32", "float32")
    assert run("saliency", forward, [0, 2]).meta.precision == "float32"


@pytest.mark.parametrize(("of_model", "of_engine", "expected"), [
    ("float32", None, "ieee"),
    (None, "float32", "ieee"),
    (None, "half", "ieee"),
    (None, None, "bf16"),
])  # fmt: skip
def test_an_engine_computes_in_its_own_precision_or_the_model_s(
    of_model: ArithmeticPrecision | None, of_engine: ArithmeticPrecision | None, expected: str
) -> None:
    torch.set_float32_matmul_precision("medium")
    module, classifier = watched(of_model)
    classifier = replace(classifier, spec=replace(classifier.spec, crop=24, resize=24))
    live = Engine(classifier, options=EngineOptions(precision=of_engine))
    live.calibrate()
    (reply,) = live.run([request(0, methods=["saliency", "guided_backprop"])])
    assert isinstance(reply, Reply)
    assert set(module.seen) == {expected}
    assert {one.result.meta.precision for one in reply.explanations} == {"bf16" if expected == "bf16" else "float32"}
