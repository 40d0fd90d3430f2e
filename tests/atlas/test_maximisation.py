"""A channel's maximising pictures: what they must become, and how they differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import classifier
from small_atlases import FIRST, LAST, small_model
from torch import nn

from convlens.atlas.maximisation import ChannelMaximiser, MaximisationOptions, mean_similarity
from convlens.errors import RequestError
from convlens.models import Classifier

QUICK = MaximisationOptions(pictures=2, steps=20, side=16, jitter=1.0)


def colour_model() -> Classifier:
    """Channel 0 is red less the other two, channel 1 is blue less the other two: linear."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Flatten(), nn.Linear(2 * 24 * 24, 3))
    network[0].weight.data = torch.tensor([[2.0, -1.0, -1.0], [-1.0, -1.0, 2.0]])[:, :, None, None]
    return classifier(network, classes=3, crop=24, embedding_layer="2", gradcam_layer="0")


@pytest.mark.parametrize(("channel", "colour"), [(0, 0), (1, 2)])
def test_a_channel_that_is_a_colour_is_maximised_by_that_colour(channel: int, colour: int) -> None:
    options = replace(QUICK, steps=60, rate=0.3)
    images, activations = ChannelMaximiser(colour_model(), "0", options).pictures(channel)
    for image_HWC in images:
        mean_C = image_HWC.mean((0, 1))
        assert mean_C[colour] > 1.5 * np.delete(mean_C, colour).max()
    # The largest value of a unit: that colour full, the others empty, normalised by mean .5 and spread .25.
    assert max(activations) <= 2 * 2 + 2 * 2 + 1e-4
    assert activations == sorted(activations, reverse=True)


def test_the_activation_is_that_of_the_picture_as_it_is_seen() -> None:
    model = small_model()
    images, activations = ChannelMaximiser(model, LAST, QUICK).pictures(3)
    for image_HWC, activation in zip(images, activations, strict=True):
        x_NCHW = (torch.from_numpy(image_HWC.astype(np.float32)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        with torch.no_grad():
            out_NCHW = model.module[:4](x_NCHW)
        assert activation == pytest.approx(float(out_NCHW[0, 3].max()), abs=1e-5)


def test_maximising_raises_the_activation() -> None:
    before, after = (
        ChannelMaximiser(small_model(), LAST, replace(QUICK, steps=steps)).pictures(2)[1] for steps in (1, 30)
    )
    assert min(after) > max(before)


def test_a_channel_depends_on_its_number_and_the_seed_alone() -> None:
    model = small_model()
    after_others = ChannelMaximiser(model, FIRST, QUICK)
    after_others.pictures(0)
    alone = ChannelMaximiser(model, FIRST, QUICK).pictures(4)
    again, reseeded = after_others.pictures(4), ChannelMaximiser(model, FIRST, QUICK, seed=1).pictures(4)
    assert all(map(np.array_equal, again[0], alone[0]))
    assert not np.array_equal(reseeded[0][0], alone[0][0])


def test_the_similarity_is_the_cosine_between_gram_matrices() -> None:
    # Rows of two channels at two places; their Gram matrices are diag(2, 0), diag(0, 2) and all ones.
    first, second = [[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]
    both = [[1.0, 0.0], [1.0, 0.0]]
    rows = torch.tensor([first, second, both])[:, :, None, :]
    assert mean_similarity(rows[:2]).item() == pytest.approx(0.0)
    assert mean_similarity(rows[[0, 0]]).item() == pytest.approx(1.0)
    # <diag(1, 0), ones> / (1 · 2) = 1/2
    assert mean_similarity(rows[[0, 2]]).item() == pytest.approx(0.5)
    assert mean_similarity(rows).item() == pytest.approx((0.0 + 0.5 + 0.5) / 3)


def test_the_similarity_of_many_channels_is_that_of_the_matrices_written_out() -> None:
    output_NCHW = torch.randn(3, 40, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    grams = [each.flatten(1) @ each.flatten(1).T for each in output_NCHW]
    cosines = [float((a * b).sum() / (a.norm() * b.norm())) for n, a in enumerate(grams) for b in grams[:n]]
    assert mean_similarity(output_NCHW).item() == pytest.approx(np.mean(cosines))


def test_a_filter_of_edges_is_maximised_by_edges() -> None:
    """Its map has a mean of 0 whatever the image, but for the border."""
    network = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(24 * 24, 3))
    network[0].weight.data = torch.tensor([-1.0, 0.0, 1.0]).expand(1, 3, 3, 3).clone()
    model = classifier(network, classes=3, crop=24, embedding_layer="2", gradcam_layer="0")
    options = MaximisationOptions(pictures=1, steps=60, side=24, rate=0.2, jitter=0.0, scale=0.0, rotate=0.0)
    (image_HWC,), _ = ChannelMaximiser(model, "0", options).pictures(0)
    inside_HW = image_HWC[4:-4, 4:-4].mean(2)
    across, down = (np.abs(np.diff(inside_HW, axis=axis)).mean() for axis in (1, 0))
    assert across > max(40, down)  # levels of 255; by the plain mean it is 16


def test_diversity_makes_a_channel_s_pictures_differ_in_style() -> None:
    model = small_model()

    def similarity(diversity: float) -> float:
        options = replace(QUICK, steps=40, diversity=diversity)
        images, _ = ChannelMaximiser(model, FIRST, options).pictures(1)
        x_NCHW = torch.stack([torch.from_numpy(each.astype(np.float32)).permute(2, 0, 1) for each in images])
        with torch.no_grad():
            return mean_similarity(model.module[:2]((x_NCHW / 255 - 0.5) / 0.25)).item()

    assert similarity(2.0) < similarity(0.0)


def test_a_layer_behind_what_fits_one_size_has_pictures_of_that_size() -> None:
    images, _ = ChannelMaximiser(colour_model(), "2", replace(QUICK, steps=2)).pictures(0)
    assert images[0].shape == (24, 24, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pictures": 0}, "pictures should be from 1 to 8"), ({"steps": 0}, "steps should be 1"), ({"side": 8}, "side")],
)
def test_options_that_cannot_work_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        MaximisationOptions(**options)
