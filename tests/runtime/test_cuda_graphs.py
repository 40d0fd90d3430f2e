"""Passes captured as CUDA graphs give what launched ones give, for any batch that fits, from any thread."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest
import torch
from nets import Mixed, classifier, pictures

from convlens.explain import ForwardPass, run
from convlens.explain.captured_forward import captured_of
from convlens.models import Classifier

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
METHODS = ("saliency", "guided_backprop", "deconvnet")


def on_gpu() -> Classifier:
    torch.manual_seed(4)
    made = classifier(Mixed(), classes=4, crop=12)
    device = torch.device("cuda", 0)
    return Classifier(made.module.double().to(device), made.spec, device, made.source)


def on_cpu(gpu: Classifier) -> Classifier:
    torch.manual_seed(4)
    return Classifier(
        classifier(Mixed(), classes=4, crop=12).module.double(), gpu.spec, torch.device("cpu"), gpu.source
    )


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_replayed_explanations_equal_those_of_a_cpu(rows: int) -> None:
    gpu, targets = on_gpu(), [0, 3, 1, 2][:rows]
    x_NCHW = pictures(rows, 3, 12, 12)
    wanted = ForwardPass(on_cpu(gpu), x_NCHW)
    for _ in range(3):  # launched, captured, replayed
        found = ForwardPass(gpu, x_NCHW)
        np.testing.assert_allclose(found.logits_NK, wanted.logits_NK, rtol=1e-10)
        np.testing.assert_allclose(found.embedding_ND, wanted.embedding_ND, rtol=1e-10)
        for method in METHODS:
            values = run(method, found, targets).values_NCHW
            np.testing.assert_allclose(values, run(method, wanted, targets).values_NCHW, rtol=1e-9, atol=1e-12)


def test_a_batch_goes_into_the_next_larger_one_that_was_captured() -> None:
    gpu, x_NCHW = on_gpu(), pictures(3, 3, 12, 12)
    passes = captured_of(gpu)
    assert passes is not None
    passes.capture(torch.zeros(4, 3, 12, 12, dtype=torch.float64, device="cuda"))
    found, wanted = ForwardPass(gpu, x_NCHW), ForwardPass(on_cpu(gpu), x_NCHW)
    values = run("saliency", found, [1, 2, 0]).values_NCHW
    np.testing.assert_allclose(values, run("saliency", wanted, [1, 2, 0]).values_NCHW, rtol=1e-9, atol=1e-12)


def test_two_batches_in_turn_keep_their_own_gradients() -> None:
    gpu, (one, other) = on_gpu(), (pictures(1, 3, 12, 12), pictures(1, 3, 12, 12, seed=9))
    for _ in range(2):
        ForwardPass(gpu, one).record()
    first, second = ForwardPass(gpu, one), ForwardPass(gpu, other)
    first.record(), second.record()
    values = run("guided_backprop", first, [2]).values_NCHW
    wanted = run("guided_backprop", ForwardPass(on_cpu(gpu), one), [2]).values_NCHW
    np.testing.assert_allclose(values, wanted, rtol=1e-9, atol=1e-12)


def test_threads_do_not_disturb_each_other() -> None:
    gpu = on_gpu()
    images = [pictures(1, 3, 12, 12, seed=seed) for seed in range(4)]
    wanted = [run("saliency", ForwardPass(on_cpu(gpu), x), [1]).values_NCHW for x in images]
    worst = [0.0] * 4

    def explain(n: int) -> None:
        for _ in range(20):
            values = run("saliency", ForwardPass(gpu, images[n]), [1]).values_NCHW
            worst[n] = max(worst[n], float(np.abs(values - wanted[n]).max()))

    threads = [threading.Thread(target=explain, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert max(worst) < 1e-10


def test_captured_passes_go_with_their_network() -> None:
    gpu = on_gpu()
    for _ in range(3):
        ForwardPass(gpu, pictures(1, 3, 12, 12)).record()
    alive = weakref.ref(gpu.module)
    del gpu
    assert alive() is None


def test_new_weights_are_seen() -> None:
    gpu, x_NCHW = on_gpu(), pictures(1, 3, 12, 12)
    for _ in range(3):
        before = ForwardPass(gpu, x_NCHW).logits_NK
    for parameter in gpu.module.parameters():
        parameter.data = parameter.data * 1.5
    assert np.abs(ForwardPass(gpu, x_NCHW).logits_NK - before).max() > 1e-3
