"""Maximally activating patches: the streaming choice, the crops, and the gradients beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from nets import classifier, relative_error
from PIL import Image
from reference_gradients import ReferenceNetwork
from torch import nn

from convlens import image, load
from convlens.errors import RequestError, UnsupportedModelError
from convlens.features.image_list import image_files
from convlens.inspection.patch_sheet import crop, crop_gradient, draw_channel_sheet, visible_box
from convlens.inspection.patches import PatchGradients, TopK, find_patches
from convlens.inspection.receptive_field import receptive_field
from convlens.types import Neuron
from convlens.visualization.layout import text_image

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def everything_sorted(maps_NCHW: np.ndarray, k: int) -> list[list[tuple[int, int, int]]]:
    """For each channel (picture, y, x) of the k largest, by sorting every picture's largest value."""
    best = []
    for maps_NHW in maps_NCHW.transpose(1, 0, 2, 3):
        peaks = [
            (-map_HW.max(), n, *np.unravel_index(map_HW.argmax(), map_HW.shape)) for n, map_HW in enumerate(maps_NHW)
        ]
        best.append([(n, int(y), int(x)) for _, n, y, x in sorted(peaks)[:k]])
    return best


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_streaming_gives_what_sorting_everything_gives_on_200_images_for_every_channel(batch: int) -> None:
    maps_NCHW = np.random.default_rng(1).integers(0, 40, (200, 24, 5, 6)).astype(np.float32)  # ties on purpose
    strongest = TopK(24, 9)
    for first in range(0, 200, batch):
        strongest.add(maps_NCHW[first : first + batch])
    result = np.stack([strongest.image_CM, strongest.y_CM, strongest.x_CM], axis=2).tolist()
    assert [[tuple(place) for place in some] for some in result] == everything_sorted(maps_NCHW, 9)
    assert (np.diff(strongest.value_CM, axis=1) <= 0).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve crops of real photographs, and one file that is none."""
    made = tmp_path_factory.mktemp("pictures")
    for n in range(12):
        name = ("chelsea.png", "coffee.png", "rocket.jpg")[n % 3]
        with Image.open(PHOTOGRAPHS / name) as picture:
            left, top = 20 * n, 10 * n
            picture.convert("RGB").crop((left, top, left + 180, top + 170)).save(made / f"{n:02}.png")
    (made / "05-broken.png").write_bytes(b"no picture")
    return made


@pytest.mark.parametrize("layer", ["blocks.0.0.conv_dw", "blocks.2.1", "classifier"])
def test_a_folder_s_patches_are_those_of_all_its_activations_sorted(folder: Path, layer: str) -> None:
    model = load(device="cpu")
    files = image_files(folder)
    result = find_patches(model, files, layer=layer, k=5)
    names = [name for name in files if "broken" not in name]
    caught: list[torch.Tensor] = []
    handle = model.module.get_submodule(layer).register_forward_hook(lambda _, __, out: caught.append(out.clone()))
    with torch.no_grad():
        for first in range(0, len(names), 16):
            some = [image.prepare(image.read(files[name]), model.spec).x_CHW for name in names[first : first + 16]]
            model.module(torch.from_numpy(np.stack(some)))
    handle.remove()
    maps = torch.cat(caught).numpy()
    expected = everything_sorted(maps if maps.ndim == 4 else maps[:, :, None, None], 5)
    places = [
        [(names.index(p.image_id), p.neuron.y or 0, p.neuron.x or 0) for p in some]
        for some in result.by_channel.values()
    ]
    assert places == expected
    assert [name for name, _ in result.unreadable] == ["05-broken.png"]
    assert result.images == 12


def test_whatever_lies_outside_a_patch_does_not_matter_to_its_neuron(folder: Path) -> None:
    model = load(device="cpu")
    layer = "blocks.1.1.conv_dw"
    result = find_patches(model, image_files(folder), layer=layer, k=2, channels=range(0, 60, 7))
    noise = np.random.default_rng(3)
    for some in result.by_channel.values():
        for patch in some:
            _, x_CHW = result.read(patch, model)
            top, left, bottom, right = (max(side, 0) for side in patch.box)
            other_CHW = noise.normal(size=x_CHW.shape).astype(np.float32)
            other_CHW[:, top:bottom, left:right] = x_CHW[:, top:bottom, left:right]
            again = find_value(model, other_CHW, layer, patch.neuron)
            assert again == pytest.approx(patch.value, abs=1e-6 * max(1, abs(patch.value)))


def find_value(model, x_CHW: np.ndarray, layer: str, neuron: Neuron) -> float:
    caught: list[torch.Tensor] = []
    handle = model.module.get_submodule(layer).register_forward_hook(lambda _, __, out: caught.append(out.clone()))
    with torch.no_grad():
        model.module(torch.from_numpy(x_CHW[None]))
    handle.remove()
    return float(caught[0][0, neuron.channel, neuron.y, neuron.x])


class Head(nn.Module):
    """A network cut behind one layer, with one neuron of it for its only score: what the slow twin can take."""

    def __init__(self, trunk: nn.Sequential, neuron: Neuron) -> None:
        super().__init__()
        self.trunk, self.neuron = trunk, neuron

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trunk(x)[:, self.neuron.channel, self.neuron.y, self.neuron.x, None]


@pytest.mark.parametrize(("backprop", "rule"), [("guided", "guided"), ("saliency", "plain")])
def test_gradients_of_neurons_are_those_of_the_slow_twin(backprop: str, rule: str) -> None:
    model = load("torchvision:vgg11:untrained", device="cpu")
    neurons = [Neuron("features.4", *place) for place in ((3, 10, 40), (100, 0, 0), (3, 55, 55))]
    x_NCHW = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    result = np.stack(list(PatchGradients(model, "features.4", backprop=backprop).each(neurons, x_NCHW.numpy())))
    for grad, neuron, x_CHW in zip(result, neurons, x_NCHW, strict=True):
        expected = ReferenceNetwork(Head(model.module.features[:5], neuron), x_CHW[None]).gradient(rule, [0])[0]
        assert relative_error(grad, expected) < 1e-5
    field = receptive_field(model, "features.4")
    for grad, neuron in zip(result, neurons, strict=True):
        top, left, bottom, right = field.clipped(neuron.y, neuron.x)
        assert np.abs(grad).sum() == pytest.approx(np.abs(grad[:, top:bottom, left:right]).sum())


def test_a_network_without_relus_has_no_guided_backprop_and_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    model = classifier(net, classes=2)
    x_CHW = np.zeros((3, 8, 8), np.float32)
    with pytest.raises(UnsupportedModelError, match=r"(?i)silu"):
        list(PatchGradients(model, "2").each([Neuron("2", 0, 0, 0)], [x_CHW]))
    (plain,) = PatchGradients(model, "2", backprop="saliency").each([Neuron("2", 0, 0, 0)], [x_CHW])
    assert np.abs(plain).sum() > 0


def test_a_crop_at_the_border_is_padded_and_not_shifted() -> None:
    view = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    got = crop(view, (-1, 3, 2, 7), fill=(9, 8, 7))
    assert got.shape == (3, 4, 3)
    assert (got[0] == (9, 8, 7)).all() and (got[:, 2:] == (9, 8, 7)).all()
    np.testing.assert_array_equal(got[1:, :2], view[:2, 3:5])
    gradient = crop_gradient(view.transpose(2, 0, 1).astype(np.float32), (-1, 3, 2, 7))
    np.testing.assert_array_equal(gradient[:, 1:, :2], view[:2, 3:5].transpose(2, 0, 1))
    assert gradient[:, 0].sum() == 0 and gradient[:, :, 2:].sum() == 0
    assert visible_box((-9, 2, 9, 4), (6, 6)) == (0, 2, 6, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": "blocks.2.9"}, "did you mean blocks.2"),
        ({"layer": "blocks.2.1", "channels": [3, 40]}, r"no channel 40; there are 0\.\.39"),
        ({"layer": "blocks.2.1", "k": 13}, "12 of 13 images could be read; 05-broken"),
        ({"layer": "blocks.2.1", "k": 0}, "use 1 or more"),
    ],
)
def test_bad_parameters_of_a_patch_search_are_refused_with_what_is_possible(
    folder: Path, given: dict, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        find_patches(load(device="cpu"), image_files(folder), **given)


def test_an_image_that_changed_meanwhile_is_noticed(folder: Path, tmp_path: Path) -> None:
    model = load(device="cpu")
    files = {}
    for file in sorted(folder.glob("0[0-2].png")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
        files[file.name] = tmp_path / file.name
    result = find_patches(model, files, layer="conv_stem", channels=[0], k=3)
    Image.new("RGB", (300, 300)).save(tmp_path / "01.png")
    with pytest.raises(RequestError, match="has changed"):
        [result.read(patch, model) for patch in result.by_channel[0]]


def test_the_photograph_s_strongest_place_is_its_peak() -> None:
    model = load(device="cpu")
    x_CHW = image.prepare(image.read(PHOTOGRAPHS / "chelsea.png"), model.spec).x_CHW
    files = {"chelsea.png": PHOTOGRAPHS / "chelsea.png"}
    result = find_patches(model, files, layer="blocks.1.0", channels=[4], k=1)
    (patch,) = result.by_channel[4]
    assert find_value(model, x_CHW, "blocks.1.0", patch.neuron) == patch.value


def test_before_the_first_relu_guided_backprop_is_the_gradient() -> None:
    model = load("torchvision:alexnet:untrained", device="cpu")
    x_CHW = np.random.default_rng(0).normal(size=(3, 224, 224)).astype(np.float32)
    neurons = [Neuron("features.0", 7, 3, 4)]
    (guided,) = PatchGradients(model, "features.0").each(neurons, [x_CHW])
    (plain,) = PatchGradients(model, "features.0", backprop="saliency").each(neurons, [x_CHW])
    np.testing.assert_array_equal(guided, plain)
    np.testing.assert_allclose(guided[:, 10:21, 14:25], model.module.features[0].weight[7], rtol=1e-5, atol=1e-8)


def test_each_crop_bears_its_caption_below_its_gradient() -> None:
    crops = [np.full((8, 8, 3), level, np.uint8) for level in (10, 90)]
    gradients = [np.ones((3, 8, 8), np.float32)] * 2
    plain, captioned = (draw_channel_sheet(crops, gradients, captions=each) for each in ([], ["4.2 cat.png", "3 a"]))
    np.testing.assert_array_equal(captioned[: len(plain)], plain)
    below = captioned[len(plain) + 4 :]
    side = 8 * 20  # 20 is the largest whole number of pixels by which a crop of 8 becomes no larger than 160
    for first, text in ((0, "4.2 cat.png"), (side + 4, "3 a")):
        expected = text_image(text, size=11, width=side)
        np.testing.assert_array_equal(below[: len(expected), first : first + side], expected)


def test_of_a_long_caption_the_end_stays_whole_letters_below_the_crop() -> None:
    words = ["a" * n + f"-{n}.png" for n in (200, 300)]
    crops = [np.zeros((100, 100, 3), np.uint8)] * 2
    sheet = draw_channel_sheet(crops, [], captions=[f"4.2 {word}" for word in words])
    below = sheet[100 + 4 :]
    # Three lines, of which the last ends above the lower edge: no letter is cut.
    assert below.shape[0] == text_image("a b c", size=11, width=8).shape[0]
    assert (below[-3:] == 255).all()
    # The captions differ in nothing but their ends.
    assert (below[:, :100] != below[:, 104:]).any()
