"""Maps of a reply put to the test: which explanations are evaluated, and the curves of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convlens.engine.method_calls import MethodCall
from convlens.errors import RequestError
from convlens.evaluation.perturbation import CurveProtocol, perturbation_curves
from convlens.evaluation.relevance import pixel_order, relevance
from convlens.explain.forward import Forward
from convlens.explain.registry import Drawing
from convlens.protocol.params import Params
from convlens.types import Attribution, Evaluation, ModelSpec, Neuron, Result, ScoreCurve

# The name under which it is counted and timed, beside the methods.
EVALUATE = "evaluate"
_SEED = 0


def with_evaluation(
    calls: Sequence[MethodCall], params: Params, spec: ModelSpec, *, entry: str
) -> tuple[list[MethodCall], list[str]]:
    """The calls with the evaluation that the parameters ask for, and a warning for each that can have none.

    RequestError where nothing is explained, and where another model ``entry`` answers what takes many forward passes.
    """
    evaluation = params.evaluation
    if evaluation is None:
        return list(calls), []
    if not (params.explain or params.methods):
        raise RequestError(
            "evaluate needs maps to evaluate, and this request asks for none; name methods, or ask /explanations",
            field=EVALUATE,
        )
    if entry:
        raise RequestError(
            f"evaluate is answered by the model entry {entry!r}: ask /explanations/{entry}, or name it as the model "
            "over gRPC",
            field=EVALUATE,
        )
    evaluated: list[MethodCall] = []
    warnings: list[str] = []
    for call in calls:
        if reason := _reason_against(call, spec):
            warnings.append(f"{call.id} is not evaluated: {reason}")
        evaluated.append(call if reason else replace(call, evaluation=evaluation))
    return evaluated, warnings


def _reason_against(call: MethodCall, spec: ModelSpec) -> str:
    """Why this explanation has no curves; empty where it has."""
    if call.method.needs == "embedding":
        return "it gives no map"
    if not spec.classes:
        return "the curves are of a class's score, and this network has no classes"
    if isinstance(call.target, Neuron):
        return "the curves are of a class's score, and it explains a neuron"
    return ""


def evaluate(forward: Forward, call: MethodCall, result: Result) -> Evaluation:
    """The curves of one row's map, for the class that it explains. Calls ``on_step`` of ``forward`` on the way."""
    assert call.evaluation is not None
    assert isinstance(result, Attribution), "what methods that are evaluated give"
    protocol = CurveProtocol(steps=call.evaluation.steps, seed=_SEED)
    order = pixel_order(relevance(result.values_NCHW[0], call.method.drawing), seed=protocol.seed)
    curves = perturbation_curves(forward, int(result.target_N[0]), order, call.evaluation.curves, protocol)
    return Evaluation(
        curves={
            kind: ScoreCurve(
                curve.fraction_S,
                curve.probability_S,
                curve.logit_S,
                auc={"probability": curve.auc("probability"), "logit": curve.auc("logit")},
            )
            for kind, curve in curves.items()
        },
        steps=protocol.steps,
        insertion_substrate=protocol.insertion_substrate,
        deletion_substrate=protocol.deletion_substrate,
        seed=protocol.seed,
        order=_order_in_words(call.method.drawing),
    )


def _order_in_words(drawing: Drawing) -> str:
    value = "the sum over the channels" if drawing == "signed" else "the largest absolute value over the channels"
    return f"by {value}, the largest first, equal ones in the order that seed draws"
