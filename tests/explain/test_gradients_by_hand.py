"""The gradient explanations on nets whose answers are known: by hand, from W, from finite differences, row by row."""

from __future__ import annotations

from typing import Any, Literal, get_origin

import nets
import numpy as np
import pytest
import reference_gradients
import torch
from unsupported_activations import UNSUPPORTED, with_relu

from convlens.errors import ModelError, RequestError, TargetError, UnsupportedModelError
from convlens.explain import ForwardPass, run
from convlens.explain.registry import available_methods, get

GRADIENTS = ("saliency", "guided_backprop", "deconvnet")
MIXED_TARGETS = [0, 1, 3]


@pytest.fixture
def by_hand() -> ForwardPass:
    """Rows (2, 1) and (2, 1) again, and (−1, −2); see instrument/test_relu_rules.py for the sums."""
    x_NCHW = torch.cat([nets.pair(2.0, 1.0), nets.pair(2.0, 1.0), nets.pair(-1.0, -2.0)])
    return ForwardPass(nets.classifier(nets.ByHand(torch.relu), classes=2, crop=1), x_NCHW)


@pytest.fixture(scope="module")
def mixed() -> ForwardPass:
    classifier = nets.classifier(nets.seeded(nets.Mixed), classes=4)
    return ForwardPass(classifier, nets.pictures(3, 3, 8, 8))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # (−1, −2): units −3, 1, 1 and so (0, 1, 1) after the ReLU; for class 1 g = (−1, 1, −1)
        ("saliency", [(0.0, 2.0), (0.0, -2.0), (2.0, -1.0)]),
        ("guided_backprop", [(1.0, 1.0), (1.0, -1.0), (1.0, -1.0)]),
        ("deconvnet", [(-1.0, 1.0), (1.0, -1.0), (1.0, -1.0)]),
    ],
)
def test_each_row_gets_its_own_targets_gradient_added_up_by_hand(
    by_hand: ForwardPass, method: str, expected: list[tuple[float, float]]
) -> None:
    result = run(method, by_hand, [0, 1, 1])
    assert [tuple(row) for row in result.values_NCHW.reshape(3, 2).tolist()] == expected
    assert result.score_N.tolist() == [2.0, -2.0, 0.0]
    assert result.target_N.tolist() == [0, 1, 1]
    assert (result.meta.relu_calls_seen, result.meta.forwards, result.meta.backwards) == (1, 1, 1)


def test_without_a_target_the_predicted_class_is_explained(by_hand: ForwardPass) -> None:
    # logits (2, −2), (2, −2) and (−1 + 2, 1 − 1) = (1, 0)
    assert run("saliency", by_hand).target_N.tolist() == [0, 0, 0]
    mirrored = ForwardPass(by_hand.classifier, nets.pair(-1.0, 2.0))  # units 1, −3, 1: logits (3, −2)
    assert run("saliency", mirrored).score_N.tolist() == [3.0]
    backwards = ForwardPass(by_hand.classifier, nets.pair(1.0, -2.0))  # units −1, 3, −1: logits (−3, 3)
    assert run("saliency", backwards).target_N.tolist() == [1]


def test_all_rules_come_from_one_forward(by_hand: ForwardPass) -> None:
    metas = [run(method, by_hand).meta for method in GRADIENTS]
    assert [(meta.forwards, meta.backwards) for meta in metas] == [(1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("method", GRADIENTS)
def test_the_order_in_which_methods_run_does_not_matter(mixed: ForwardPass, method: str) -> None:
    again = ForwardPass(mixed.classifier, mixed.x_NCHW)
    for other in (*GRADIENTS, *reversed(GRADIENTS)):
        run(other, again, MIXED_TARGETS)
    first = run(method, ForwardPass(mixed.classifier, mixed.x_NCHW), MIXED_TARGETS)
    assert np.array_equal(run(method, again, MIXED_TARGETS).values_NCHW, first.values_NCHW)


@pytest.mark.parametrize("method", GRADIENTS)
def test_a_row_gets_alone_what_it_gets_among_others(mixed: ForwardPass, method: str) -> None:
    together = run(method, mixed, MIXED_TARGETS)
    for n, target in enumerate(MIXED_TARGETS):
        alone = run(method, ForwardPass(mixed.classifier, mixed.x_NCHW[n : n + 1]), [target])
        # float64 rounding: a batch of one takes other kernels
        assert nets.relative_error(alone.values_NCHW, together.row(n).values_NCHW) < 1e-12
        assert alone.score_N == pytest.approx(together.row(n).score_N, rel=1e-12)


@pytest.mark.parametrize("method", GRADIENTS)
def test_selected_rows_share_the_forward_and_keep_their_order(mixed: ForwardPass, method: str) -> None:
    whole = run(method, mixed, MIXED_TARGETS)
    part = run(method, mixed.select([2, 0]), [3, 0])
    assert np.array_equal(part.values_NCHW, whole.values_NCHW[[2, 0]])
    assert part.meta.forwards == whole.meta.forwards == 1


@pytest.mark.parametrize("method", GRADIENTS)
def test_a_row_selected_twice_is_explained_for_each_of_its_targets(mixed: ForwardPass, method: str) -> None:
    result = run(method, mixed.select([1, 1, 0, 1]), [1, 3, 0, 0])
    for n, (row, target) in enumerate([(1, 1), (1, 3), (0, 0), (1, 0)]):
        assert np.array_equal(result.values_NCHW[n], run(method, mixed.select([row]), [target]).values_NCHW[0])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint16", "int64"])
def test_targets_may_be_of_any_integer_type(mixed: ForwardPass, dtype: str) -> None:
    result = run("saliency", mixed, np.array(MIXED_TARGETS, dtype=dtype))
    assert np.array_equal(result.values_NCHW, run("saliency", mixed, MIXED_TARGETS).values_NCHW)


@pytest.mark.parametrize(
    "targets", [[0, 1], [0, 1, 4], [-1, 0, 0], [0.0, 1.0, 2.0], [True, False, True], [[0], [1], [2]]]
)
def test_targets_that_do_not_fit_are_refused(mixed: ForwardPass, targets: list[int]) -> None:
    with pytest.raises(TargetError, match=r"targets|out of range") as caught:
        run("saliency", mixed, targets)
    assert caught.value.field == "target"


def test_saliency_equals_finite_differences(mixed: ForwardPass) -> None:
    module = mixed.classifier.module
    for n, target in enumerate(MIXED_TARGETS):
        expected = reference_gradients.finite_differences(module, mixed.x_NCHW[n : n + 1].contiguous(), target)
        result = run("saliency", mixed.select([n]), [target]).values_NCHW
        # central differences of step 1e-6: rounding 1e-16 / 1e-6, no curvature between kinks
        assert nets.relative_error(result, expected) < 1e-7


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_saliency_of_a_linear_net_is_its_weight(score: str) -> None:
    net = nets.seeded(nets.Linear)
    x_NCHW = nets.pictures(2, 3, 4, 4)
    result = run("saliency", ForwardPass(nets.classifier(net, classes=3), x_NCHW), [2, 0], {"score": score})
    weight_KCHW = net.head.weight.detach().reshape(3, 3, 4, 4)
    expected = weight_KCHW[[2, 0]]
    if score == "probability":  # dp_t/dx = p_t (W_t − Σ_k p_k W_k)
        p_NK = net(x_NCHW).softmax(1).detach()
        p_N = p_NK[[0, 1], [2, 0]]
        expected = p_N[:, None, None, None] * (expected - torch.einsum("nk,kchw->nchw", p_NK, weight_KCHW))
        assert result.score_N == pytest.approx(p_N.numpy(), rel=1e-12)
    assert nets.relative_error(result.values_NCHW, expected) < 1e-12
    assert result.meta.target_kind == score


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_saliency_is_autograds_even_where_no_rule_is_defined(name: str) -> None:
    net = nets.seeded(lambda: with_relu(UNSUPPORTED[name][0]()))
    x_NCHW = nets.pictures(2, 3, 8, 8)
    result = run("saliency", ForwardPass(nets.classifier(net, classes=3), x_NCHW), [2, 0]).values_NCHW
    assert nets.relative_error(result, reference_gradients.plain_gradient(net, x_NCHW, [2, 0])) < 1e-12


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_a_refused_network_still_gets_its_saliency_from_the_same_forward(method: str) -> None:
    forward = ForwardPass(
        nets.classifier(with_relu(torch.nn.SiLU()), classes=3),
        nets.pictures(1, 3, 8, 8, dtype=torch.float32),
    )
    for _ in range(2):  # the second time, too
        with pytest.raises(UnsupportedModelError, match=f"{method}.*SiLU"):
            run(method, forward)
    assert np.abs(run("saliency", forward).values_NCHW).max() > 0
    assert forward._shared.forwards == 1


def test_a_methods_relu_counts_are_zero_where_it_runs_no_backward_of_ours(mixed: ForwardPass) -> None:
    assert run("saliency", mixed, MIXED_TARGETS).meta.relu_calls_seen == nets.Mixed.relu_calls
    meta = run("integrated_gradients", mixed, MIXED_TARGETS, {"steps": 2}).meta
    assert (meta.relu_calls_seen, meta.relu_calls_ruled) == (0, 0)


def test_a_model_in_training_mode_is_refused() -> None:
    classifier = nets.classifier(nets.Mixed(), classes=4)
    classifier.module.block.train()
    with pytest.raises(ModelError, match="block is in training mode"):
        ForwardPass(classifier, nets.pictures(1, 3, 8, 8))


@pytest.mark.parametrize("method", GRADIENTS)
def test_damaged_weights_are_an_error_and_no_map(method: str) -> None:
    net = nets.Mixed().eval()
    net.head.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        run(method, ForwardPass(nets.classifier(net, classes=4), nets.pictures(1, 3, 8, 8)), [0])


def test_unknown_methods_and_options_are_refused_with_near_matches(mixed: ForwardPass) -> None:
    with pytest.raises(RequestError, match="no method 'salience'; did you mean saliency") as caught:
        run("salience", mixed)
    assert caught.value.field == "method"
    with pytest.raises(RequestError, match="saliency has no option 'scores'; did you mean score") as caught:
        run("saliency", mixed, None, {"scores": "logit"})
    assert caught.value.field == "options.scores"
    with pytest.raises(RequestError, match="guided_backprop has no option 'score'"):
        run("guided_backprop", mixed, None, {"score": "logit"})
    with pytest.raises(RequestError, match="no score 'odds'; there are: logit, probability"):
        run("saliency", mixed, None, {"score": "odds"})


WORDS = [
    (name, key)
    for name in available_methods()
    for key, (hint, _) in get(name).options.items()
    if get_origin(hint) is Literal
]


@pytest.mark.parametrize("given", ["odds", "", 5, None, ["logit"], np.zeros(2)], ids=repr)
@pytest.mark.parametrize(("method", "option"), WORDS)
def test_a_word_that_an_option_does_not_take_is_refused_before_anything_is_computed(
    method: str, option: str, given: Any
) -> None:
    classifier = nets.classifier(nets.seeded(nets.Mixed), classes=4)
    fresh = ForwardPass(classifier, nets.pictures(3, 3, 8, 8))
    with pytest.raises(RequestError, match=f"^no {option} .*; there are: ") as caught:
        run(method, fresh, None, {option: given})
    assert caught.value.field == f"options.{option}"
    assert fresh.counts["forwards"] == 0
