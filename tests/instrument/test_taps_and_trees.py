"""Layer taps and private trees: what they catch, and that the user's module never notices."""

from __future__ import annotations

import nets
import pytest
import torch
from torch import Tensor, nn

from convlens.errors import ModelError, RequestError
from convlens.instrument import find_layer, private_tree, require_eval, tapped


def hooks(module: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, table)) for part in module.modules() for table in tables)


def shifted() -> nn.Sequential:
    """x − 2, ReLU in place, 3x: of 1 the first layer makes −1, which the ReLU then overwrites."""
    shift, triple = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1, bias=False)
    shift.weight.data, shift.bias.data = torch.ones(1, 1, 1, 1), torch.tensor([-2.0])
    triple.weight.data = torch.full((1, 1, 1, 1), 3.0)
    return nn.Sequential(shift, nn.ReLU(inplace=True), triple).eval()


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value)


def test_a_tapped_output_is_not_overwritten_by_an_in_place_relu() -> None:
    net = shifted()
    with tapped(net, outputs=["0", "1"]) as tap:
        out = tap.module(one(1.0))
    assert [tap.outputs["0"].item(), tap.outputs["1"].item(), out.item()] == [-1.0, 0.0, 0.0]


def test_a_tapped_input_is_not_overwritten_either() -> None:
    with tapped(shifted(), inputs=["1", "2"]) as tap:
        assert tap.module(one(5.0)).item() == 9.0
    assert [tap.inputs["1"].item(), tap.inputs["2"].item()] == [3.0, 3.0]
    with tapped(shifted(), inputs=["1"]) as tap:
        tap.module(one(1.0))
    assert tap.inputs["1"].item() == -1.0


def test_the_users_module_gets_no_hook_even_inside() -> None:
    net = shifted()
    with tapped(net, inputs=["1"], outputs=["0"]) as tap:
        tap.module(one(1.0))
        assert hooks(net) == 0
        assert hooks(tap.module) == 2


def test_a_layer_without_layers_of_its_own_gets_no_hook_either() -> None:
    # An empty nn.Sequential, many networks' shortcut, is false where it is asked for its truth.
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential())
    tree = private_tree(net)
    assert tree.get_submodule("1") is not net[1]
    with tapped(net, outputs=["1"]) as tap:
        tap.module(torch.zeros(1, 3, 2, 2))
    assert not net[1]._forward_hooks


def test_a_layer_that_runs_twice_keeps_its_last_call() -> None:
    double = nn.Conv2d(1, 1, 1, bias=False)
    double.weight.data = torch.full((1, 1, 1, 1), 2.0)
    net = nn.Sequential(double, double)  # one module at two places
    with tapped(net, outputs=["0"]) as tap:
        assert tap.module(one(1.0)).item() == 4.0
    assert tap.outputs["0"].item() == 4.0
    tree = private_tree(net)
    assert tree[0] is tree[1]


def test_an_unknown_layer_is_refused_with_near_matches() -> None:
    with pytest.raises(RequestError, match=r"no layer 'frist'; did you mean first"):
        find_layer(nets.Mixed(), "frist")
    with (
        pytest.raises(RequestError, match="no layer 'zzz'; its first are first, norm, relu"),
        tapped(nets.Mixed(), outputs=["zzz"]),
    ):
        raise AssertionError("not reached")


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_layer_that_never_ran_is_an_error_on_leaving(kind: str) -> None:
    net = nets.Mixed().eval()
    net.spare = nn.Conv2d(1, 1, 1)
    with (
        pytest.raises(RequestError, match="layer 'spare' exists but did not run"),
        tapped(net, **{kind: ["spare"]}) as tap,
    ):
        tap.module(nets.pictures(1, 3, 8, 8, dtype=torch.float32))


def test_an_error_inside_is_not_replaced_by_one_about_layers() -> None:
    with pytest.raises(nets.Blown), tapped(shifted(), outputs=["0"]):
        raise nets.Blown


@pytest.mark.parametrize("normed", [False, True])
def test_a_private_tree_shares_every_tensor_and_no_module(normed: bool) -> None:
    net = nets.Mixed().eval()
    if normed:
        nn.utils.parametrizations.weight_norm(net.get_submodule("first"))
    tree = private_tree(net)
    for (name, ours), (same_name, theirs) in zip(tree.named_modules(), net.named_modules(), strict=True):
        assert name == same_name
        assert ours is not theirs
        assert type(ours) is type(theirs)
    tensors = [*net.named_parameters(), *net.named_buffers()]
    for (name, ours), (same_name, theirs) in zip(
        [*tree.named_parameters(), *tree.named_buffers()], tensors, strict=True
    ):
        assert name == same_name
        assert ours is theirs
    x = nets.pictures(2, 3, 8, 8, dtype=torch.float32)
    assert torch.equal(tree(x), net(x))


def test_changes_to_a_private_tree_stay_there() -> None:
    net = nets.Mixed().eval()
    tree = private_tree(net)
    tree.train()
    tree.block.norm.register_forward_hook(lambda *_: None)
    tree.register_buffer("extra", torch.ones(1))
    tree.norm = nn.Identity()
    tree.stride = 2
    assert hooks(net) == 0
    assert not any(part.training for part in net.modules())
    assert isinstance(net.norm, nn.BatchNorm2d)
    assert not hasattr(net, "extra")
    assert not hasattr(net, "stride")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_part_runs_in_a_private_tree_but_cannot_be_tapped() -> None:
    net = nn.Sequential(torch.jit.script(shifted()), nn.Identity()).eval()
    with tapped(net, outputs=["1"]) as tap:
        assert tap.module(one(5.0)).item() == 9.0
    assert tap.outputs["1"].item() == 9.0
    with pytest.raises(RequestError, match="layer '0' is scripted"), tapped(net, outputs=["0"]):
        raise AssertionError("not reached")


def test_weights_loaded_later_are_seen_by_both() -> None:
    net = shifted()
    tree = private_tree(net)
    net.load_state_dict({name: tensor * 2 for name, tensor in net.state_dict().items()})
    assert tree(one(5.0)).item() == net(one(5.0)).item() == 36.0  # 6·relu(2·5 − 4)


def test_training_mode_anywhere_is_refused_by_name() -> None:
    net = nets.Mixed().eval()
    require_eval(net)
    net.block.norm.train()
    with pytest.raises(ModelError, match=r"block.norm is in training mode; call .eval\(\)"):
        require_eval(net)
    with pytest.raises(ModelError, match="the model is in training mode"):
        require_eval(nets.Mixed())
