"""What receptive fields are not defined for, and what looking for them leaves behind."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import Tensor, nn

from convlens import load
from convlens.errors import ModelError, RequestError, UnsupportedModelError
from convlens.inspection import receptive_field, receptive_fields


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.spare = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).mean((2, 3)))


def small(middle: nn.Module | None = None) -> object:
    return nets.classifier(Unused() if middle is None else nets.Sequential(middle), classes=2)


def test_an_unknown_layer_gets_near_matches() -> None:
    with pytest.raises(RequestError, match=r"no layer 'frist'; did you mean first\?"):
        receptive_field(small(), "frist")


def test_a_layer_that_does_not_run_is_named() -> None:
    with pytest.raises(RequestError, match="'spare' has no receptive field: it does not run"):
        receptive_field(small(), "spare")


@pytest.mark.parametrize("unit", [(6, 0), (0, 6), (-1, 0), (0, -1)])
def test_a_unit_outside_the_grid_is_refused_with_the_grid(unit: tuple[int, int]) -> None:
    field = receptive_field(small(), "first")
    for box in (field.box, field.clipped):
        with pytest.raises(RequestError, match=r"rows 0\.\.5 and columns 0\.\.5"):
            box(*unit)


@pytest.mark.parametrize(
    ("step", "operation"),
    [
        (lambda x: torch.fft.rfft2(x).abs(), "_fft_r2c"),
        (lambda x: x if float(x.mean((1, 2, 3))[0]) > 0 else -x, "_local_scalar_dense"),
        (lambda x: x - x.mean(0, keepdim=True), "mean"),
        (lambda x: nn.functional.conv_transpose2d(x, torch.ones(4, 4, 2, 2)), "convolution"),
        (lambda x: torch.zeros(8, 4, 8, 8).copy_(x), "copy_"),
    ],
)
def test_an_operation_that_is_not_known_is_named_with_its_layer(step: nets.Activation, operation: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"aten::{operation} in layer 'middle'"):
        receptive_fields(small(nets.Call(step)))


def test_a_transformer_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"_dot_product_\w+ in layer 'blocks\.0\.attn'"):
        receptive_fields(load("timm:vit_tiny_patch16_224:untrained", device="cpu"))


def test_an_image_that_is_too_small_is_refused_with_the_models_own_size() -> None:
    with pytest.raises(RequestError, match=r"failed on images of 20×20 pixels, in layer 'f.*own size is 224"):
        receptive_fields(load("torchvision:alexnet:untrained", device="cpu"), 20)
    with pytest.raises(RequestError, match="0×5"):
        receptive_fields(small(), (0, 5))


def test_a_network_in_training_mode_is_refused() -> None:
    classifier = small()
    classifier.module.train()
    with pytest.raises(ModelError, match="training mode"):
        receptive_fields(classifier)


def test_nothing_is_left_on_the_network_and_its_weights_are_not_read() -> None:
    classifier = nets.classifier(nets.Mixed(), classes=4, crop=32)
    before = {name: tensor.clone() for name, tensor in classifier.module.state_dict().items()}
    fields = receptive_fields(classifier)
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in classifier.module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.module.state_dict().items())
    bare = nets.classifier(nets.Mixed().to("meta"), classes=4, crop=32)  # shapes without numbers
    again = receptive_fields(bare)
    assert list(again) == list(fields)
    assert all(
        (again[name].seen_4YX == fields[name].seen_4YX).all() and again[name].grid == fields[name].grid
        for name in fields
    )


def test_layers_come_in_the_order_in_which_they_finish_and_a_shared_one_with_its_last_run() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.second = nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.second(self.act(self.first(x)))).mean((2, 3))

    fields = receptive_fields(nets.classifier(Twice(), classes=2))
    assert list(fields) == ["first", "second", "act"]
    assert fields["act"].size == fields["second"].size == (5, 5)
