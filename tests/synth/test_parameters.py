"""What ascent works on: Fourier coefficients against numpy's transform, pixels within what a picture can hold."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import torch

from convlens.errors import RequestError
from convlens.synth.parameters import Fourier, Pixels, make_parameterization, noise

SPEC = nets.classifier(nets.Linear(), classes=3).spec  # mean .5, spread .25


def fourier(size: tuple[int, int], **options: object) -> Fourier:
    return Fourier(2, size, SPEC, nets.CPU, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (9, 5)])
@pytest.mark.parametrize("smoothness", [1.0, 1.5])
def test_pictures_are_numpy_s_inverse_transform_of_weighted_coefficients(
    size: tuple[int, int], smoothness: float
) -> None:
    made = fourier(size, decorrelated=False, smoothness=smoothness)
    with torch.no_grad():
        made.values.copy_(torch.randn(made.values.shape, generator=torch.Generator().manual_seed(1)))
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    inverse = 1 / np.maximum(frequency, 1 / max(size))
    weight = inverse**smoothness
    weight = weight * np.sqrt((inverse**2).sum() / (weight**2).sum()) * np.sqrt(height * width) / 4
    spectrum = (made.values[..., 0] + 1j * made.values[..., 1]).detach().numpy() * weight
    rgb = 1 / (1 + np.exp(-np.fft.irfft2(spectrum, s=size)))
    np.testing.assert_allclose(made.images().detach().numpy(), (rgb - 0.5) / 0.25, atol=1e-5)


def test_colours_are_mixed_by_the_square_root_of_their_covariance() -> None:
    """The third of three independent channels is the faintest: green against magenta."""
    made = fourier((4, 4))
    with torch.no_grad():
        made.values[0, 0, 0, 0, 0] = 0.1
        made.values[1, 2, 0, 0, 0] = 0.1
    moved_NC = made.images().detach().mean((2, 3)).numpy()
    strength = np.abs(moved_NC).max(1)
    assert strength[0] > 3 * strength[1]
    assert np.ptp(np.sign(moved_NC[0])) == 0  # the first is brightness: all colours one way


def test_the_start_from_a_picture_is_that_picture() -> None:
    x_NCHW = torch.rand(2, 3, 6, 10, generator=torch.Generator().manual_seed(3)) * 3.6 - 1.8
    made = fourier((6, 10))
    made.set_images(x_NCHW)
    torch.testing.assert_close(made.images().detach(), x_NCHW, atol=1e-4, rtol=0)


def test_pixels_stay_between_black_and_white() -> None:
    made = Pixels(1, (2, 2), SPEC, nets.CPU)
    made.set_images(torch.full((1, 3, 2, 2), 9.0))
    made.clip()
    assert made.images().max() == 2.0  # (1 − .5) / .25
    made.set_images(torch.full((1, 3, 2, 2), -9.0))
    made.clip()
    assert made.images().min() == -2.0


def test_noise_is_the_generator_s() -> None:
    one, two = (noise((3, 4), torch.Generator().manual_seed(5), nets.CPU) for _ in range(2))
    assert torch.equal(one, two)


def test_an_unknown_parameterisation_is_refused() -> None:
    with pytest.raises(RequestError, match="no parameterisation 'wavelet'; there are: fourier, pixels"):
        make_parameterization("wavelet", 1, (4, 4), SPEC, nets.CPU, decorrelated=True)
