"""Tiles cover once, and give the whole picture's gradient where they see far enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convlens.errors import RequestError
from convlens.synth.deepdream import GRID, tiled_gradient, tiles_along


@pytest.mark.parametrize("length", [1, 64, 160, 161, 333, 512])
@pytest.mark.parametrize(("tile", "overlap"), [(96, 32), (128, 20), (160, 0)])
def test_every_pixel_is_kept_once_and_seen_with_its_surroundings(length: int, tile: int, overlap: int) -> None:
    tiles = tiles_along(length, tile=tile, overlap=overlap)
    assert [pixel for one in tiles for pixel in range(*one.core)] == list(range(length))
    for one in tiles:
        assert one.context[1] - one.context[0] <= tile
        assert one.context[0] == 0 or one.core[0] - one.context[0] >= overlap
        assert one.context[1] == length or one.context[1] - one.core[1] >= overlap
        assert one.context[0] % GRID == 0


def test_tiles_without_room_are_refused() -> None:
    with pytest.raises(RequestError, match="tiles of 128 pixels have no room for 50 more on each side; they need 160"):
        tiles_along(500, tile=128, overlap=50)


class Strided(nn.Module):
    """Three convolutions, one of them strided, and a pool: a unit sees 23 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.parts(x_NCHW)


@pytest.mark.parametrize("size", [(200, 333), (97, 310)])
def test_tiled_is_untiled_where_the_receptive_field_is_smaller_than_the_overlap(size: tuple[int, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Strided().double().eval()
        x_NCHW = torch.randn(1, 3, *size, dtype=torch.float64)

    def gradient(part: Tensor) -> Tensor:
        part = part.detach().requires_grad_()
        (found,) = torch.autograd.grad((net(part) ** 2).sum() / 2, part)
        return found

    whole = gradient(x_NCHW)
    torch.testing.assert_close(tiled_gradient(x_NCHW, gradient, tile=128, overlap=24), whole, atol=1e-12, rtol=0)
    with pytest.raises(AssertionError):  # and it is the overlap that does it
        torch.testing.assert_close(tiled_gradient(x_NCHW, gradient, tile=128, overlap=0), whole, atol=1e-12, rtol=0)
