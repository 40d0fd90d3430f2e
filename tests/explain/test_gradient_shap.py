"""GradientSHAP against captum fed with the same draws, a linear network and integrated gradients."""

from __future__ import annotations

import copy

import nets
import numpy as np
import pytest
import torch
from captum import attr
from captum.attr._core import gradient_shap as captums
from captum.attr._core import noise_tunnel

from convlens.explain import ForwardPass, run

TARGETS = [0, 1, 3]


@pytest.fixture(scope="module")
def mixed() -> ForwardPass:
    return ForwardPass(nets.classifier(nets.seeded(nets.Mixed), classes=4), nets.pictures(3, 3, 8, 8))


def draws(samples: int, *, noisy: bool, seed: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Shares, colours and noise, in the order in which the seed gives them: a sample after the other."""
    generator = torch.Generator().manual_seed(seed)
    shares, colours, noises = [], [], []
    for _ in range(samples):
        shares.append(float(torch.rand((), generator=generator)))
        colours.append(torch.randn(3, 1, 1, generator=generator))
        noises.append(torch.randn(3, 8, 8, generator=generator) if noisy else torch.zeros(3, 8, 8))
    return np.array(shares), torch.stack(colours).double(), torch.stack(noises).double()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_values_are_captum_s_by_the_same_draws(
    mixed: ForwardPass, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, spread, module = 7, 0.8, copy.deepcopy(mixed.classifier.module)
    options = {"samples": samples, "noise": noise, "seed": 3, "spread": spread, "baseline": 0.25}
    result = run("gradient_shap", mixed, TARGETS, options)
    shares, colours, noises = draws(samples, noisy=noise > 0, seed=3)
    baselines = (0.25 + spread * colours).expand(-1, 3, 8, 8)
    for n, target in enumerate(TARGETS):
        x_1CHW = mixed.x_NCHW[n : n + 1].contiguous()
        deviation = noise * float(x_1CHW.max() - x_1CHW.min())
        with monkeypatch.context() as patch:
            # captum draws from the global generators: the share by numpy, the baseline by numpy, the noise by torch
            patch.setattr(captums.np.random, "uniform", lambda *_: shares)
            patch.setattr(captums.np.random, "choice", lambda *_: np.arange(samples))
            patch.setattr(noise_tunnel.torch, "normal", lambda _, std: noises * std)
            expected = attr.GradientShap(module).attribute(
                x_1CHW, baselines=baselines, n_samples=samples, stdevs=deviation, target=target
            )
        # captum holds the shares in float32
        assert nets.relative_error(result.values_NCHW[n : n + 1], expected.detach()) < 1e-6


def test_the_values_of_a_linear_net_are_its_weights_times_the_mean_difference() -> None:
    net = nets.seeded(lambda: nets.Linear(8))
    forward = ForwardPass(nets.classifier(net, classes=3), nets.pictures(2, 3, 8, 8))
    result = run("gradient_shap", forward, [2, 0], {"samples": 9, "seed": 5})
    _, colours, _ = draws(9, noisy=False, seed=5)
    weight_NCHW = net.head.weight.detach().reshape(3, 3, 8, 8)[[2, 0]]
    assert nets.relative_error(result.values_NCHW, weight_NCHW * (forward.x_NCHW - colours.mean(0))) < 1e-12


def test_with_one_baseline_the_mean_is_that_of_integrated_gradients(mixed: ForwardPass) -> None:
    one = run("gradient_shap", mixed, TARGETS, {"samples": 1000, "spread": 0.0, "baseline": -0.5}).values_NCHW
    exact = run("integrated_gradients", mixed, TARGETS, {"steps": 200, "baseline": -0.5}).values_NCHW
    # a thousand draws leave a thirtieth of one draw's spread
    assert np.sqrt(((one - exact) ** 2).mean() / (exact**2).mean()) < 0.06


def test_a_row_does_not_depend_on_its_batch(mixed: ForwardPass) -> None:
    together = run("gradient_shap", mixed, TARGETS, {"samples": 10, "noise": 0.1}).values_NCHW
    for n, target in enumerate(TARGETS):
        alone = ForwardPass(mixed.classifier, mixed.x_NCHW[n : n + 1])
        result = run("gradient_shap", alone, [target], {"samples": 10, "noise": 0.1})
        assert nets.relative_error(result.values_NCHW, together[n : n + 1]) < 1e-12  # a batch of one: other kernels


def test_the_seed_fixes_everything_and_the_global_generators_stay_where_they_are(mixed: ForwardPass) -> None:
    before, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (
        run("gradient_shap", mixed, TARGETS, {"samples": 5, "seed": seed}).values_NCHW for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], of_numpy)
    assert np.array_equal(first, again)
    assert nets.relative_error(other, first) > 1e-2
