"""How many images a pass takes at a time on a CPU, and that more of them than that change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convlens.explain import ForwardPass, run
from convlens.explain.batch_size import cpu_gradient_batch


class Wide(nn.Module):
    """Its largest tensor takes ``channels`` × 256 × 256 × 4 bytes an image: a quarter of a megabyte a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 1)
        self.head = nn.Linear(channels, 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.first(x_NCHW).mean((2, 3)))


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, 8), (15, 8), (16, 7), (20, 6), (25, 5), (64, 4)],
    ids=["small", "8 of 3.75 MB", "8 of 4 MB reach 32", "6 of 5 MB", "5 of 6.25 MB", "never fewer than 4"],
)
@pytest.mark.usefixtures("threads")
def test_no_tensor_of_a_pass_reaches_32_mb_while_4_images_are_left(channels: int, expected: int) -> None:
    assert cpu_gradient_batch(Wide(channels).eval(), torch.zeros(3, 1, 256, 256)) == expected


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize(
    ("channels", "expected"), [(1, 8), (10, 7), (13, 6), (64, 4)], ids=["small", "2.5 MB", "3.25 MB", "16 MB"]
)
@pytest.mark.usefixtures("threads")
def test_on_one_thread_no_tensor_of_a_pass_reaches_20_mb(channels: int, expected: int) -> None:
    assert cpu_gradient_batch(Wide(channels).eval(), torch.zeros(3, 1, 256, 256)) == expected


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grad_cam", {"relu": False}),
        ("smoothgrad", {"samples": 5}),
        ("smoothgrad", {"samples": 11}),
        ("integrated_gradients", {"steps": 3}),
        ("gradient_shap", {"samples": 5}),
    ],
)
def test_of_more_images_than_a_pass_takes_each_gets_its_own_answer(method: str, options: dict[str, int]) -> None:
    classifier = nets.classifier(nets.seeded(nets.Mixed), classes=4, gradcam_layer="third")
    x_NCHW, targets = nets.pictures(11, 3, 8, 8), [n % 4 for n in range(11)]
    together = run(method, ForwardPass(classifier, x_NCHW), targets, options)
    for n, target in enumerate(targets):
        alone = run(method, ForwardPass(classifier, x_NCHW[n : n + 1]), [target], options)
        assert nets.relative_error(together.values_NCHW[n : n + 1], alone.values_NCHW) < 1e-12
        np.testing.assert_allclose(together.score_N[n], alone.score_N[0], rtol=1e-12)
