"""What an evaluation recommends, read back from its file, and the files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import evaluations
import pytest

from convlens.errors import RequestError
from convlens.evaluation.recommendation import read_recommendation

SHA = "a" * 64


def test_the_methods_and_their_evidence_are_those_of_the_evaluation(tmp_path: Path) -> None:
    result = read_recommendation(evaluations.write_evaluation(tmp_path, SHA))
    assert result.methods == ("guided_backprop", "grad_cam")
    evidence = result.evidence
    assert (evidence["weights_sha256"], evidence["pictures"], evidence["metric"]) == (SHA, 200, "faithfulness")
    assert set(evidence["methods"]) == {"guided_backprop", "grad_cam"}
    value = evidence["methods"]["guided_backprop"]
    assert (value["mean"], value["low"], value["high"]) == pytest.approx((0.39, 0.36, 0.42))
    assert value["n"] == 200


def test_options_that_were_evaluated_are_told_from_the_defaults(tmp_path: Path) -> None:
    verdict = evaluations.verdict(("saliency", "occlusion"))
    settings = evaluations.settings(SHA)
    settings["methods"]["occlusion"] = {"window": 48, "stride": 16}  # 16 is the default
    result = read_recommendation(evaluations.write_evaluation(tmp_path, SHA, verdict=verdict, settings=settings))
    assert result.options_not_default() == {"occlusion": {"window": 48}}
    assert result.evidence["methods"]["occlusion"]["options"] == {"window": 48, "stride": 16}


def test_other_weights_are_refused_with_both_hashes(tmp_path: Path) -> None:
    result = read_recommendation(evaluations.write_evaluation(tmp_path, SHA))
    result.require_weights(SHA)
    with pytest.raises(RequestError, match=f"{SHA}.*{'b' * 64}"):
        result.require_weights("b" * 64)


def test_no_recommendation_is_refused_with_its_reason(tmp_path: Path) -> None:
    verdict = evaluations.verdict(()) | {"headline": "No method is better than random pixels.", "notes": []}
    folder = evaluations.write_evaluation(tmp_path, SHA, verdict=verdict)
    with pytest.raises(RequestError, match="recommends no method: No method is better than random pixels"):
        read_recommendation(folder)


def test_a_recommended_method_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    folder = evaluations.write_evaluation(tmp_path, SHA, verdict=evaluations.verdict(("occlude",)))
    with pytest.raises(RequestError, match="'occlude'; did you mean occlusion"):
        read_recommendation(folder)


def test_a_missing_evaluation_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RequestError, match=r"no finished evaluation in .*`convlens evaluate .* -o"):
            read_recommendation(folder)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{", "the file"),
        ("[]", "the file"),
        (json.dumps({"settings": {}, "summary": {}, "verdict": {}}), "settings.model"),
        (json.dumps({"settings": {"model": 1}}), "settings.model"),
    ],
)
def test_a_damaged_evaluation_is_refused_with_the_place(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(RequestError, match=rf"damaged or no evaluation \({place}: .*convlens evaluate"):
        read_recommendation(tmp_path)
