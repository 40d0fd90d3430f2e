"""A network cut short behind the layers that are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from convlens.errors import RequestError
from convlens.instrument import PartialForward


class Shared(nn.Module):
    """One ReLU that runs twice, in place, and a layer behind it that must not run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.relu, self.pair, self.unused = nn.ReLU(inplace=True), Pair(), nn.Linear(1, 1)
        self.ran = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x))
        self.ran += 1
        return self.third(self.pair(x)[0])


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.fixture
def net() -> Shared:
    torch.manual_seed(0)
    return Shared().eval().requires_grad_(False)


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))


def by_hand(net: Shared) -> dict[str, torch.Tensor]:
    first = net.first(X)
    second = net.second(first.relu())
    return {"first": first, "second": second, "relu": second.relu()}


def test_a_layer_that_runs_twice_counts_by_its_last_run(net: Shared) -> None:
    found = PartialForward(net, ["relu"], X)(X)["relu"]
    torch.testing.assert_close(found, by_hand(net)["relu"], rtol=0, atol=0)


def test_several_layers_come_as_they_were_before_in_place_steps_behind_them(net: Shared) -> None:
    found = PartialForward(net, ["second", "first", "relu", "first"], X)(X)
    assert found.keys() == {"first", "second", "relu"}
    for name, wanted in by_hand(net).items():
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=0)


def test_nothing_runs_behind_the_last_layer() -> None:
    net = resnet18().eval()
    up_to = PartialForward(net, ["layer1"], torch.zeros(1, 3, 64, 64))
    ran: list[str] = []
    up_to._tree.layer2.register_forward_pre_hook(lambda *_: ran.append("layer2"))
    wanted = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(torch.ones(2, 3, 64, 64))))))
    torch.testing.assert_close(up_to(torch.ones(2, 3, 64, 64))["layer1"], wanted, rtol=0, atol=0)
    assert ran == []


def test_gradients_flow_to_the_pictures(net: Shared) -> None:
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(PartialForward(net, ["second"], X)(x)["second"].sum(), x)
    mask = (net.first(X) > 0).float()
    torch.testing.assert_close(grad, (net.second.weight.sum(0) * mask) @ net.first.weight)


def test_the_user_s_module_never_gets_a_hook(net: Shared) -> None:
    PartialForward(net, ["relu"], X)(X)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert net(X).shape == (4, 2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [("frist", "did you mean first"), ("unused", "does not run"), ("pair", "returns a tuple"), ("", "no layer ''")],
)
def test_a_layer_that_will_not_do_is_said(net: Shared, layer: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PartialForward(net, [layer], X)
