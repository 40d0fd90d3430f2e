"""RISE against the exact expectation over all masks, a closed form and the authors' sum mask by mask."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
from torch import Tensor

from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain import ForwardPass, run
from convlens.types import ScoreKind, Step

SIDE, CELLS = 4, 2
TARGETS = [2, 0]


def mask_of(open_SS: np.ndarray, shift: tuple[int, int], side: int) -> np.ndarray:
    """(side, side): the grid stretched bilinearly to a cell more than the image, from ``shift`` on; pixel by pixel."""
    cells = len(open_SS)
    pixels = -(-side // cells)
    scale = cells / ((cells + 1) * pixels)
    mask_HW = np.zeros((side, side))
    for y, x in itertools.product(range(side), repeat=2):
        # centres of pixels, held within the centres of the outermost cells
        at_y, at_x = (max((place + start + 0.5) * scale - 0.5, 0.0) for place, start in zip((y, x), shift, strict=True))
        top, left = int(at_y), int(at_x)
        for i, weight_y in ((top, 1 - (at_y - top)), (top + 1, at_y - top)):
            for j, weight_x in ((left, 1 - (at_x - left)), (left + 1, at_x - left)):
                mask_HW[y, x] += weight_y * weight_x * open_SS[min(i, cells - 1), min(j, cells - 1)]
    return mask_HW


def all_masks(probability: float) -> Iterator[tuple[float, np.ndarray]]:
    """Each mask there is for ``SIDE`` and ``CELLS``, with how probable it is."""
    pixels = SIDE // CELLS
    for bits in itertools.product((0, 1), repeat=CELLS**2):
        share = np.prod([probability if bit else 1 - probability for bit in bits]) / pixels**2
        for shift in itertools.product(range(pixels), repeat=2):
            yield float(share), mask_of(np.array(bits, float).reshape(CELLS, CELLS), shift, SIDE)


def score_of(forward: ForwardPass, x_NCHW: Tensor, target: int, kind: ScoreKind) -> np.ndarray:
    with torch.no_grad():
        logits_NK = forward.classifier.module(x_NCHW)
    return (logits_NK if kind == "logit" else logits_NK.softmax(1))[:, target].numpy()


def expectation(
    forward: ForwardPass, row: int, target: int, probability: float, kind: ScoreKind
) -> tuple[np.ndarray, np.ndarray]:
    """E[f · M] / p − E[f], and the standard deviation of one mask's part in it; (H, W) both."""
    shares, masks = (np.array(each) for each in zip(*all_masks(probability), strict=True))
    scores = score_of(forward, forward.x_NCHW[row] * torch.as_tensor(masks)[:, None], target, kind)
    mean = shares @ scores
    part_BHW = (scores - mean)[:, None, None] * masks / probability
    expected_HW = np.tensordot(shares, part_BHW, 1)
    return expected_HW, np.sqrt(np.tensordot(shares, (part_BHW - expected_HW) ** 2, 1))


@pytest.fixture(scope="module")
def linear() -> ForwardPass:
    return ForwardPass(nets.classifier(nets.seeded(nets.Linear), classes=3), nets.pictures(2, 3, SIDE, SIDE))


@pytest.fixture(scope="module")
def mixed() -> ForwardPass:
    return ForwardPass(nets.classifier(nets.seeded(nets.Mixed), classes=4), nets.pictures(2, 3, SIDE, SIDE))


@pytest.mark.parametrize("probability", [0.5, 0.2])
@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize("network", ["linear", "mixed"])
def test_the_map_is_the_expectation_over_all_masks(
    network: str, kind: ScoreKind, probability: float, linear: ForwardPass, mixed: ForwardPass
) -> None:
    forward, masks = {"linear": linear, "mixed": mixed}[network], 3000
    options = {"masks": masks, "cells": CELLS, "probability": probability, "score": kind}
    result = run("rise", forward, TARGETS, options)
    for n, target in enumerate(TARGETS):
        expected_HW, deviation_HW = expectation(forward, n, target, probability, kind)
        off_HW = np.abs(result.values_NCHW[n, 0] - expected_HW) / (deviation_HW / np.sqrt(masks))
        assert off_HW.max() < 4.5, "16 dependent pixels: one in 10,000 such maps lies further off"
        # and the map is no noise: the sampling error is far smaller than what it shows
        assert np.ptp(expected_HW) > 5 * deviation_HW.max() / np.sqrt(masks)


def test_the_expectation_of_a_linear_net_is_the_covariance_of_the_masks_by_its_shares(linear: ForwardPass) -> None:
    """Σ_j share_j · Cov(M_j, M) / p: what the enumeration above stands on."""
    weights, masks = (np.array(each) for each in zip(*all_masks(0.5), strict=True))
    share_J = (linear.classifier.module.head.weight[2].detach().reshape(3, -1) * linear.x_NCHW[0].reshape(3, -1)).sum(0)
    flat_BJ = masks.reshape(len(masks), -1)
    covariance_JJ = flat_BJ.T @ (flat_BJ * weights[:, None]) - 0.25
    expected_HW, _ = expectation(linear, 0, 2, 0.5, "logit")
    np.testing.assert_allclose(expected_HW.flatten(), covariance_JJ @ share_J.numpy() / 0.5, atol=1e-12)


@pytest.mark.parametrize(("cells", "side"), [(2, 4), (3, 8), (7, 8)])
def test_the_uncentred_map_is_the_authors_sum_mask_by_mask(cells: int, side: int) -> None:
    forward = ForwardPass(nets.classifier(nets.seeded(nets.Mixed), classes=4), nets.pictures(2, 3, side, side))
    result = run("rise", forward, TARGETS, {"masks": 20, "cells": cells, "probability": 0.3, "seed": 4})
    generator, pixels = torch.Generator().manual_seed(4), -(-side // cells)
    total_NHW = np.zeros((2, side, side))
    for _ in range(20):
        open_SS = (torch.rand(cells, cells, generator=generator) < 0.3).double().numpy()
        shift = tuple(int(torch.randint(pixels, (), generator=generator)) for _ in range(2))
        mask_HW = mask_of(open_SS, shift, side)
        for n, target in enumerate(TARGETS):
            masked = (forward.x_NCHW[n] * torch.as_tensor(mask_HW))[None]
            total_NHW[n] += score_of(forward, masked, target, "logit")[0] * mask_HW
    # the masks are made in float32
    assert nets.relative_error(result.extras["uncentred_N1HW"][:, 0], total_NHW / (0.3 * 20)) < 1e-6


def test_a_rectangle_is_masked_in_rectangles() -> None:
    forward = ForwardPass(nets.classifier(nets.seeded(nets.Mixed), classes=4), nets.pictures(1, 3, 8, 12))
    assert run("rise", forward, [0], {"masks": 8, "cells": 3}).values_NCHW.shape == (1, 1, 8, 12)


@pytest.mark.parametrize(("activation", "of"), [("softmax", 1), ("sigmoid", 0), ("none", -1)])
def test_a_probability_is_by_the_network_s_own_activation(mixed: ForwardPass, activation: str, of: int) -> None:
    classifier = replace(mixed.classifier, spec=replace(mixed.classifier.spec, activation=activation))
    options = {"masks": 6, "cells": 2, "seed": 1, "score": "probability"}
    result = run("rise", ForwardPass(classifier, mixed.x_NCHW[:1]), [2], options)
    generator, total_HW = torch.Generator().manual_seed(1), np.zeros((SIDE, SIDE))
    for _ in range(6):
        open_SS = (torch.rand(2, 2, generator=generator) < 0.5).double().numpy()
        mask_HW = mask_of(open_SS, tuple(int(torch.randint(2, (), generator=generator)) for _ in range(2)), SIDE)
        with torch.no_grad():
            logit_K = classifier.module((mixed.x_NCHW[0] * torch.as_tensor(mask_HW))[None])[0]
        score = {1: logit_K.softmax(0), 0: logit_K.sigmoid(), -1: logit_K}[of][2]
        total_HW += float(score) * mask_HW
    assert nets.relative_error(result.extras["uncentred_N1HW"][0, 0], total_HW / 3) < 1e-6


def test_a_row_gets_alone_what_it_gets_among_others(mixed: ForwardPass) -> None:
    together = run("rise", mixed, TARGETS, {"masks": 40, "cells": 2}).values_NCHW
    for n, target in enumerate(TARGETS):
        alone = ForwardPass(mixed.classifier, mixed.x_NCHW[n : n + 1])
        assert np.array_equal(run("rise", alone, [target], {"masks": 40, "cells": 2}).values_NCHW, together[n : n + 1])


def test_the_seed_fixes_everything_and_the_global_generator_stays_where_it_is(mixed: ForwardPass) -> None:
    before = torch.get_rng_state()
    first, again, other = (
        run("rise", mixed, TARGETS, {"masks": 20, "cells": 2, "seed": seed}).values_NCHW for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first, again)
    assert nets.relative_error(other, first) > 1e-2


def test_progress_is_told_in_masks(mixed: ForwardPass) -> None:
    steps: list[Step] = []
    watched = ForwardPass(mixed.classifier, mixed.x_NCHW, on_step=steps.append)
    run("rise", watched, TARGETS, {"masks": 40, "cells": 2})
    assert [(step.stage, step.done, step.total) for step in steps] == [("rise", done, 80) for done in range(8, 81, 8)]


def test_more_cells_than_pixels_are_refused(mixed: ForwardPass) -> None:
    with pytest.raises(RequestError, match=r"cells=5 are more than the image's 4 pixels a side; use 1\.\.4") as caught:
        run("rise", mixed, TARGETS, {"cells": 5})
    assert caught.value.field == "options.cells"


@pytest.mark.parametrize("method", ["rise", "score_cam", "layer_cam", "input_x_gradient"])
def test_a_network_without_classes_is_refused(method: str) -> None:
    classifier = nets.classifier(nets.seeded(nets.Mixed), classes=0)
    with pytest.raises(UnsupportedModelError, match=f"{method} explains a class, and this network gives embeddings"):
        run(method, ForwardPass(classifier, nets.pictures(1, 3, 8, 8)))
