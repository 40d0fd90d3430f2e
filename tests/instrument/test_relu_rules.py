"""The ReLU rules on nets that can be added up by hand, in every spelling."""

from __future__ import annotations

import threading
from collections.abc import Callable

import nets
import pytest
import reference_gradients
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlens.errors import RequestError
from convlens.instrument import RULES, RuledRelus

# nets.ByHand at a=2, b=1: units 3, 1 and −2 before the ReLU; logits u − v + 2w = 2 and −u + v − w = −2. Gradients:
#   class 0, g = (1, −1, 2):  plain (1, −1, 0)·W   deconvnet (1, 0, 2)·W   guided (1, 0, 0)·W
#   class 1, g = (−1, 1, −1): plain (−1, 1, 0)·W   deconvnet (0, 1, 0)·W   guided (0, 1, 0)·W
RELU_BY_HAND = {
    ("plain", 0): (0.0, 2.0),
    ("deconvnet", 0): (-1.0, 1.0),
    ("guided", 0): (1.0, 1.0),
    ("plain", 1): (0.0, -2.0),
    ("deconvnet", 1): (1.0, -1.0),
    ("guided", 1): (1.0, -1.0),
}
# At a=5, b=2: units 7 (saturated at 6), 3 and −5, so that only the second passes plain and guided gradients.
RELU6_BY_HAND = {
    ("plain", 0): (-1.0, 1.0),
    ("deconvnet", 0): (-1.0, 1.0),
    ("guided", 0): (0.0, 0.0),
    ("plain", 1): (1.0, -1.0),
    ("deconvnet", 1): (1.0, -1.0),
    ("guided", 1): (1.0, -1.0),
}


def gradients(module: nn.Module, x_NCHW: Tensor, *target_N: int) -> dict[str, Tensor]:
    """By every rule, from one forward."""
    x, relus = x_NCHW.clone().requires_grad_(), RuledRelus()
    with relus:
        score = module(x)[range(len(x)), target_N].sum()
    grads = {}
    for rule in RULES:
        relus.set(rule)
        (grads[rule],) = torch.autograd.grad(score, x, retain_graph=True)
    return grads


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("spelling", nets.RELUS)
def test_every_spelling_of_relu_obeys_the_rules(spelling: str, target: int) -> None:
    found = gradients(nets.ByHand(nets.RELUS[spelling]), nets.pair(2.0, 1.0), target)
    for rule in RULES:
        assert tuple(found[rule].flatten().tolist()) == RELU_BY_HAND[rule, target], rule


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("spelling", nets.RELU6S)
def test_every_spelling_of_relu6_passes_nothing_where_it_saturates(spelling: str, target: int) -> None:
    found = gradients(nets.ByHand(nets.RELU6S[spelling]), nets.pair(5.0, 2.0), target)
    for rule in RULES:
        assert tuple(found[rule].flatten().tolist()) == RELU6_BY_HAND[rule, target], rule


@pytest.mark.parametrize("spelling", [*nets.RELUS, *nets.RELU6S])
def test_each_call_is_counted_once_and_changes_no_score(spelling: str) -> None:
    net = nets.ByHand((nets.RELUS | nets.RELU6S)[spelling])
    relus = RuledRelus()
    with relus, torch.enable_grad():
        logits = net(nets.pair(2.0, 1.0))
    assert logits.tolist() == [[2.0, -2.0]]
    assert relus.calls == 1 == reference_gradients.relu_calls(net, nets.pair(2.0, 1.0))


@pytest.mark.parametrize("recording", [True, False])
def test_an_in_place_relu_stays_in_place(recording: bool) -> None:
    x = torch.tensor([-1.0, 2.0]).requires_grad_(recording)
    with RuledRelus():
        start = x * 1.0
        out = F.relu(start, inplace=True)
    assert out is start
    assert start.tolist() == [0.0, 2.0]


def test_an_in_place_relu_of_a_leaf_that_wants_a_gradient_is_refused_as_by_torch() -> None:
    with RuledRelus(), pytest.raises(RuntimeError, match="leaf Variable"):
        torch.ones(2, requires_grad=True).relu_()


# Torch lets a network overwrite these results, since their gradient needs the input only.
OVERWRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu6": lambda x: F.relu6(x).add_(1.0),
    "clamp": lambda x: x.clamp(min=0).add_(1.0),
    "clamp_": lambda x: x.clamp_(min=0).add_(1.0),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0).add_(1.0),
    "relu of a view": lambda x: x.view(-1).relu().view_as(x).add(1.0),
}


@pytest.mark.parametrize("spelling", OVERWRITTEN)
def test_a_result_that_the_network_overwrites_changes_nothing(spelling: str) -> None:
    found = gradients(nets.ByHand(OVERWRITTEN[spelling]), nets.pair(2.0, 1.0), 0)
    for rule in RULES:
        assert tuple(found[rule].flatten().tolist()) == RELU_BY_HAND[rule, 0], rule


@pytest.mark.parametrize(
    ("x", "upper", "plain", "deconvnet"), [(0.0, None, 0.0, 1.0), (0.0, 6.0, 0.0, 1.0), (6.0, 6.0, 0.0, 1.0)]
)
def test_at_the_kink_the_true_gradient_counts_as_zero(
    x: float, upper: float | None, plain: float, deconvnet: float
) -> None:
    start, relus = torch.tensor([x], requires_grad=True), RuledRelus()
    with relus:
        out = torch.relu(start) if upper is None else F.relu6(start)
    found = {}
    for rule in RULES:
        relus.set(rule)
        found[rule] = torch.autograd.grad(out.sum(), start, retain_graph=True)[0].item()
    assert found == {"plain": plain, "deconvnet": deconvnet, "guided": plain}


NOT_RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh(-1, 1)": F.hardtanh,
    "clamp(min=0.1)": lambda x: x.clamp(min=0.1),
    "clamp(max=0)": lambda x: x.clamp(max=0),
    "clip(-1, 1)": lambda x: x.clip(-1, 1),
    "threshold at 0.1": lambda x: F.threshold(x, 0.1, 0.0),
    "threshold with another value": lambda x: F.threshold(x, 0.0, -1.0),
    "leaky_relu": F.leaky_relu,
    "clamp by a tensor": lambda x: x.clamp(min=torch.zeros(2)),
}


@pytest.mark.parametrize("name", NOT_RELUS)
def test_what_is_no_relu_is_left_alone(name: str) -> None:
    x = torch.tensor([-2.0, 0.5], requires_grad=True)
    relus = RuledRelus()
    with relus:
        out = NOT_RELUS[name](x)
    relus.set("guided")
    assert relus.calls == 0
    assert torch.equal(out, NOT_RELUS[name](x))
    assert torch.equal(torch.autograd.grad(-out.sum(), x)[0], torch.autograd.grad(-NOT_RELUS[name](x).sum(), x)[0])


@pytest.mark.parametrize("rule", RULES)
def test_reused_functional_in_place_viewed_and_gated_relus_together_equal_the_twin(rule: str) -> None:
    net, x = nets.seeded(nets.Mixed), nets.pictures(3, 3, 8, 8)
    twin = reference_gradients.ReferenceNetwork(net, x)
    assert twin.relu_calls == reference_gradients.relu_calls(net, x) == nets.Mixed.relu_calls
    assert nets.relative_error(gradients(net, x, 0, 1, 3)[rule], twin.gradient(rule, [0, 1, 3])) < 1e-10


@pytest.mark.parametrize("rule", RULES)
def test_along_a_skip_connection_the_gradient_passes_unchanged(rule: str) -> None:
    """A pre-activation block of no weight is the identity, whose gradient no rule may touch."""
    block = nets.PreActivation(2).eval()
    nn.init.zeros_(block.conv_2.weight)
    x, relus = nets.pictures(1, 2, 4, 4, dtype=torch.float32).requires_grad_(), RuledRelus()
    with relus:
        out = block(x)
    relus.set(rule)
    upstream = nets.pictures(1, 2, 4, 4, seed=1, dtype=torch.float32)
    assert torch.equal(torch.autograd.grad(out, x, upstream)[0], upstream)


def test_an_unknown_rule_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        RequestError, match=r"no ReLU rule 'guide'; did you mean guided\?; there are: plain, deconvnet, guided"
    ):
        RuledRelus().set("guide")


def test_other_threads_keep_their_own_relus() -> None:
    names: list[str] = []

    def elsewhere() -> None:
        names.append(torch.relu(torch.ones(1, requires_grad=True)).grad_fn.name())

    with RuledRelus() as relus:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert names == ["ReluBackward0"]
    assert relus.calls == 0


def test_after_an_exception_inside_no_rule_is_left_behind() -> None:
    with pytest.raises(nets.Blown), RuledRelus():
        raise nets.Blown
    assert reference_gradients.function_modes() == []
    assert torch.relu(torch.ones(1, requires_grad=True)).grad_fn.name() == "ReluBackward0"
