"""Random movements of pictures, where they can be said in whole pixels."""

from __future__ import annotations

import math

import pytest
import torch

from convlens.synth.regularisers import RandomTransform, apply_transforms, sample_transforms

PICTURE = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6)


def maps(*rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([list(row) for row in rows])


def test_no_movement_changes_nothing() -> None:
    assert not RandomTransform().any
    still = sample_transforms(RandomTransform(), 2, (6, 6), torch.Generator().manual_seed(0))
    torch.testing.assert_close(apply_transforms(PICTURE, still), PICTURE)


def test_a_shift_by_whole_pixels() -> None:
    """Two pixels of six across are 2 / 3 of half a width."""
    found = apply_transforms(PICTURE[:1], maps([[1.0, 0.0, 2 / 3], [0.0, 1.0, 0.0]]))
    torch.testing.assert_close(found[..., :4], PICTURE[:1, ..., 2:])
    assert (found[..., 4:] == 0).all()  # grey comes in from beyond


@pytest.mark.parametrize("size", [(6, 6), (4, 8)])
def test_the_range_of_movements_is_kept(size: tuple[int, int]) -> None:
    found = sample_transforms(
        RandomTransform(jitter=2, scale=0.2, rotate=30), 4000, size, torch.Generator().manual_seed(1)
    )
    height, width = size
    shift = found[:, :, 2] * torch.tensor([width, height]) / 2
    assert 1.99 < shift.abs().max() <= 2.0
    # In pixels the map is a rotation over a zoom.
    cos, sin = found[:, 0, 0], found[:, 1, 0] * height / width
    zoom = 1 / torch.hypot(cos, sin)
    angle = torch.atan2(sin, cos).rad2deg()
    assert (zoom.min() >= 0.8 - 1e-5) and (zoom.max() <= 1.2 + 1e-5) and zoom.std() > 0.1
    assert 29 < angle.abs().max() <= 30 + 1e-3


def test_a_quarter_turn() -> None:
    found = apply_transforms(PICTURE, maps([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]))
    turned = [torch.rot90(PICTURE, turns, (2, 3)) for turns in (1, -1)]
    assert any(torch.allclose(found, one, atol=1e-3) for one in turned)


def test_rotation_of_a_wide_picture_does_not_shear() -> None:
    """A disc stays a disc."""
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(81.0) - 40, indexing="ij")
    disc = (torch.hypot(y, x) < 12).float().expand(1, 1, -1, -1)
    cos, sin = math.cos(0.5), math.sin(0.5)
    # The map that ``sample_transforms`` makes for an angle of .5, by its documented form.
    generator = torch.Generator().manual_seed(0)
    rotated = sample_transforms(RandomTransform(rotate=math.degrees(0.5)), 64, (41, 81), generator)
    nearest = (rotated[:, 0, 0] - cos).abs().argmin()
    found = apply_transforms(disc, rotated[nearest : nearest + 1])
    assert (found - disc).abs().mean() < 0.01
    assert abs(float(rotated[nearest, 1, 0]) * 41 / 81) == pytest.approx(sin, abs=0.05)


def test_the_same_seed_draws_the_same() -> None:
    one, two = (
        sample_transforms(RandomTransform(3, 0.1, 5), 4, (6, 6), torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])
