"""Explanations of single neurons: by hand, by a slow twin, and by what cannot be otherwise."""

from __future__ import annotations

import nets
import numpy as np
import pytest
import reference_gradients
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.errors import RequestError, UnsupportedModelError
from convlens.explain import ForwardPass, run, run_neurons
from convlens.types import Attribution, Neuron

RULES = {"saliency": "plain", "guided_backprop": "guided", "deconvnet": "deconvnet"}


class UpToTheBlock(nets.Mixed):
    """``Mixed`` written out up to its block, with the channels at row 2, column 3 for classes."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x_NCHW)))
        x = F.max_pool2d(self.relu(self.second(x) - 0.1), 2)
        x = self.third(x)
        x = torch.cat([x[:, :1], x[:, 1:].relu()], dim=1)
        return self.block(self.gate(x))[:, :, 2, 3]


class Counting(nn.Module):
    """Two layers of which the second must not run."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.late = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)
        self.ran = 0

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.first(x_NCHW).relu()
        self.ran += 1
        return self.head(self.late(x).mean((2, 3)))


def by_hand() -> ForwardPass:
    x_NCHW = torch.cat([nets.pair(2.0, 1.0), nets.pair(-1.0, -2.0)])
    return ForwardPass(nets.classifier(nets.ByHand(nn.ReLU()), classes=2, crop=1), x_NCHW)


def mixed() -> nets.Mixed:
    return nets.seeded(nets.Mixed).double()


def mixed_pass(count: int = 2) -> ForwardPass:
    return ForwardPass(nets.classifier(mixed(), classes=4), nets.pictures(count, 3, 8, 8).double())


def explained(method: str, forward: ForwardPass, *neurons: Neuron, **options: object) -> Attribution:
    result = run_neurons(method, forward, neurons, options)
    assert isinstance(result, Attribution)
    return result


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # unit v = relu(a − b) at (2, 1) and unit w = relu(−a) at (−1, −2), both switched on
        ("saliency", [(1.0, -1.0), (-1.0, 0.0)]),
        ("guided_backprop", [(1.0, -1.0), (-1.0, 0.0)]),
    ],
)
def test_a_unit_added_up_by_hand(method: str, expected: list[tuple[float, float]]) -> None:
    result = explained(method, by_hand(), Neuron("activation", 1, 0, 0), Neuron("activation", 2, 0, 0))
    assert [tuple(row) for row in result.values_NCHW.reshape(2, 2).tolist()] == expected
    assert result.score_N.tolist() == [1.0, 1.0]
    assert result.target_N.tolist() == [-1, -1]
    assert (result.meta.target_kind, result.meta.layer) == ("activation", "activation")


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("channel", [0, 5, 15])
def test_a_neuron_is_explained_as_a_network_that_ends_there_would_be(method: str, channel: int) -> None:
    cut = UpToTheBlock().double().eval()
    cut.load_state_dict(mixed().state_dict())
    x_NCHW = nets.pictures(2, 3, 8, 8).double()
    expected = reference_gradients.ReferenceNetwork(cut, x_NCHW).gradient(RULES[method], [channel, channel])
    result = explained(method, mixed_pass(), *[Neuron("block", channel, 2, 3)] * 2)
    np.testing.assert_allclose(result.values_NCHW, expected.numpy(), atol=1e-10)
    np.testing.assert_allclose(result.score_N, cut(x_NCHW).detach().numpy()[:, channel], atol=1e-12)
    assert expected.abs().max() > 1e-3


def test_nothing_outside_the_receptive_field_matters() -> None:
    """The first convolution sees 3 × 3 pixels around its place."""
    result = explained("saliency", mixed_pass(1), Neuron("first", 3, 0, 6))
    seen = np.zeros((8, 8), bool)
    seen[0:2, 5:8] = True
    assert (result.values_NCHW[0, :, ~seen] == 0).all()
    assert (result.values_NCHW[0, :, seen] != 0).all()


def test_without_a_place_the_strongest_of_the_channel_is_meant() -> None:
    forward = mixed_pass()
    with torch.no_grad():
        out = mixed().first(forward.x_NCHW)
    expected = [np.unravel_index(int(row[7].argmax()), (8, 8)) for row in out]
    result = explained("guided_backprop", forward, *[Neuron("first", 7)] * 2)
    assert [(neuron.y, neuron.x) for neuron in result.neurons_N] == expected
    np.testing.assert_allclose(result.score_N, out[:, 7].amax((1, 2)))


def test_rows_may_ask_about_neurons_of_several_layers() -> None:
    forward = mixed_pass(3)
    requested = [Neuron("block", 2, 1, 1), Neuron("first", 0, 4, 4), Neuron("block", 9)]
    result = explained("deconvnet", forward, *requested)
    for n, neuron in enumerate(requested):
        (alone,) = explained("deconvnet", forward.select([n]), neuron).values_NCHW
        np.testing.assert_allclose(result.values_NCHW[n], alone, atol=1e-12)
    assert [neuron.layer for neuron in result.neurons_N] == ["block", "first", "block"]
    assert result.row(2).neurons_N == result.neurons_N[2:]


def test_a_unit_of_a_layer_without_a_map() -> None:
    """The last layer's units are the classes' logits."""
    forward = mixed_pass(1)
    result = explained("saliency", forward, Neuron("head", 2))
    expected = run("saliency", forward, [2])
    assert isinstance(expected, Attribution)
    np.testing.assert_allclose(result.values_NCHW, expected.values_NCHW, atol=1e-12)
    with pytest.raises(RequestError, match="'head' has no map, so leave y and x out") as caught:
        explained("saliency", forward, Neuron("head", 2, 0, 0))
    assert caught.value.field == "y"


def test_the_network_runs_no_further_than_the_layer() -> None:
    net = Counting().eval()
    forward = ForwardPass(nets.classifier(net, classes=3), nets.pictures(1, 3, 8, 8))
    explained("saliency", forward, Neuron("first", 1))
    assert net.ran == 0


@pytest.mark.parametrize(
    ("neuron", "field", "message"),
    [
        (Neuron("blokc", 0), "layer", "did you mean block"),
        (Neuron("first", 16), "channel", r"has no channel 16; there are 0\.\.15"),
        (Neuron("block", 0, 4, 0), "y", r"has y of 0\.\.3; got 4"),
        (Neuron("block", 0, 0, 9), "x", r"has x of 0\.\.3; got 9"),
    ],
)
def test_an_unknown_neuron_is_refused_with_the_ones_there_are(neuron: Neuron, field: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        explained("saliency", mixed_pass(1), neuron)
    assert caught.value.field == field


def test_methods_of_classes_graphs_and_other_counts_are_refused() -> None:
    forward = mixed_pass(1)
    with pytest.raises(RequestError, match="occlusion explains classes; neurons are explained by deconvnet, guided"):
        explained("occlusion", forward, Neuron("first", 0))
    with pytest.raises(RequestError, match="1 images need as many neurons; got 2"):
        explained("saliency", forward, Neuron("first", 0), Neuron("first", 1))
    with pytest.raises(RequestError, match="an activation and no probability"):
        explained("saliency", forward, Neuron("first", 0), score="probability")


def test_a_network_of_other_activations_has_no_guided_backprop_of_a_neuron() -> None:
    net = nets.Sequential(nn.SiLU())
    forward = ForwardPass(nets.classifier(net, classes=3), nets.pictures(1, 3, 8, 8))
    with pytest.raises(UnsupportedModelError, match="SiLU"):
        explained("guided_backprop", forward, Neuron("middle", 0))
    assert np.abs(explained("saliency", forward, Neuron("middle", 0)).values_NCHW).max() > 0
