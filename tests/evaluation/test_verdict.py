"""What the verdict says of summaries made by hand; the texts are written out as a reader should find them."""

from __future__ import annotations

from typing import Any

import pytest

from convlens.evaluation import wording
from convlens.evaluation.summary import method_kind, summarise
from convlens.evaluation.verdict import verdict

Interval = tuple[float, float]
"""A value and half the width of its interval."""


def interval(value: Interval, n: int, key: str = "mean") -> dict[str, Any]:
    middle, half = value
    alone = n < 2
    return {key: middle, "low": None if alone else middle - half, "high": None if alone else middle + half, "n": n}


def method(
    name: str,
    value: Interval | None,
    *,
    best: Interval | None = None,
    of_kind: Interval | None = None,
    baselines: dict[str, Interval] | None = None,
    seconds: float | None = 0.05,
    failed: int = 0,
    reason: str = "",
    n: int = 200,
    main: str = "faithfulness",
    **metrics: dict[str, Any],
) -> dict[str, Any]:
    """A method's part of a summary; ``best``, ``of_kind`` and ``baselines`` are differences to these."""
    against = {each: interval(pair, n, "difference") for each, pair in (baselines or {}).items()}
    return {
        "kind": method_kind(name),
        "metrics": ({main: interval(value, n)} if value else {}) | metrics,
        "seconds": seconds,
        "failed": {"count": failed, "reason": reason},
        "against_best": interval(best, n, "difference") if best else None,
        "against_best_of_kind": {"method": "another"} | interval(of_kind, n, "difference") if of_kind else None,
        "against_baseline": next(({"baseline": each} | pair for each, pair in against.items()), None),
        "against_baselines": against,
    }


def summary(
    methods: dict[str, dict[str, Any]],
    ranking: list[str],
    *,
    baselines: tuple[str, ...] = ("random pixels", "centre"),
    pictures: int = 200,
    main: str = "faithfulness",
    failures: int = 0,
) -> dict[str, Any]:
    names = [name for name in ranking if name not in baselines]
    return {
        "main_metric": main,
        "ranking": ranking,
        "baselines": list(baselines),
        "best": names[0] if names else None,
        "best_baseline": next((name for name in ranking if name in baselines), None),
        "pictures": pictures,
        "failures": [{"id": f"{number}.jpg", "reason": "not an image"} for number in range(failures)],
        "methods": methods | {name: method(name, (0.2, 0.02), seconds=0.0) for name in baselines},
    }


ABOVE = {"centre": (0.1, 0.02), "random pixels": (0.2, 0.02)}
NOT_ABOVE = {"centre": (-0.1, 0.03), "random pixels": (0.01, 0.03)}


def usual(**changed: dict[str, Any]) -> dict[str, Any]:
    """Integrated gradients lead, guided backprop may be as good, Grad-CAM is worse, deconvnet is at chance."""
    methods = {
        "integrated_gradients": method("integrated_gradients", (0.46, 0.03), baselines=ABOVE, seconds=2.0),
        "guided_backprop": method(
            "guided_backprop", (0.44, 0.03), best=(-0.02, 0.05), of_kind=(-0.02, 0.05), baselines=ABOVE
        ),
        "grad_cam": method("grad_cam", (0.39, 0.03), best=(-0.07, 0.02), baselines=ABOVE, seconds=0.04),
        "occlusion": method(
            "occlusion", (0.38, 0.03), best=(-0.08, 0.02), of_kind=(-0.01, 0.02), baselines=ABOVE, seconds=6.0
        ),
        "deconvnet": method("deconvnet", (0.17, 0.02), best=(-0.29, 0.03), of_kind=(-0.29, 0.03), baselines=NOT_ABOVE),
    } | changed
    names = [name for name in ("integrated_gradients", "guided_backprop", "grad_cam", "occlusion") if name in methods]
    return summary(methods, [*names, "centre", "random pixels", "deconvnet"])


def sentence(name: str, of: dict[str, Any]) -> str:
    return str(verdict(of)["sentences"][name])


# ---- a sentence per method


def test_the_best_is_said_to_be_so_with_those_that_may_be_as_good() -> None:
    assert sentence("integrated_gradients", usual()) == (
        "On your 200 pictures integrated gradients find what the score rests on best (.46 ± .03), at a third of "
        "occlusion's cost; no difference to guided backprop is shown."
    )


def test_the_best_of_all_beyond_doubt_stands_alone() -> None:
    worse = method("guided_backprop", (0.3, 0.03), best=(-0.16, 0.05), of_kind=(-0.16, 0.05), baselines=ABOVE)
    assert sentence("integrated_gradients", usual(guided_backprop=worse)) == (
        "On your 200 pictures integrated gradients find what the score rests on best (.46 ± .03), at a third of "
        "occlusion's cost."
    )


def test_an_interval_that_holds_0_shows_no_difference() -> None:
    assert sentence("guided_backprop", usual()) == (
        "As far as your 200 pictures show, guided backprop finds what the score rests on no worse than integrated "
        "gradients, the best (.44 ± .03; −.02 ± .05: no difference shown), at a fortieth of the cost."
    )


def test_an_interval_without_0_shows_a_difference() -> None:
    assert sentence("occlusion", usual()) == (
        "On your 200 pictures occlusion finds what the score rests on less well than integrated gradients, the best "
        "(.38 ± .03; −.08 ± .02), at three times the cost."
    )


def test_a_method_above_the_best_on_its_few_images_is_said_to_be_better() -> None:
    lucky = method("score_cam", (0.6, 0.04), best=(0.1, 0.05), baselines=ABOVE, n=20, failed=180, reason="dead maps.")
    of = usual(score_cam=lucky)
    of["ranking"].insert(0, "score_cam")
    assert sentence("score_cam", of) == (
        "On 20 of your 200 pictures Score-CAM finds what the score rests on better than integrated gradients "
        "(.60 ± .04; +.10 ± .05), at a fortieth of the cost. It has no map on 180 of your 200 pictures: dead maps."
    )


def test_no_better_than_baselines_is_said_first() -> None:
    assert sentence("deconvnet", usual()) == (
        "Deconvnet is no better than random pixels or a blob in the centre on your 200 pictures (.17 ± .02; "
        "−.10 ± .03 against a blob in the centre)."
    )


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ("random pixels", "random pixels"),
        ("random blobs", "random blobs"),
        ("centre", "a blob in the centre"),
        ("edges", "the image's edges"),
    ],
)
def test_each_baseline_is_named_in_words(baseline: str, words: str) -> None:
    weak = method("integrated_gradients", (0.2, 0.02), baselines={baseline: (0.01, 0.02)})
    of = summary({"integrated_gradients": weak}, ["integrated_gradients", baseline], baselines=(baseline,))
    assert sentence("integrated_gradients", of) == (
        f"Integrated gradients are no better than {words} on your 200 pictures (.20 ± .02; +.01 ± .02: no difference "
        "shown)."
    )


@pytest.mark.parametrize(("correlation", "said"), [(0.98, True), (0.9, True), (0.899, False)])
def test_a_map_that_the_top_layer_hardly_changes_is_not_to_debug_it(correlation: float, said: bool) -> None:
    top = interval((correlation, 0.01), 20)
    guided = method(
        "guided_backprop", (0.44, 0.03), best=(-0.02, 0.05), of_kind=(-0.02, 0.05), baselines=ABOVE, randomised_top=top
    )
    text = sentence("guided_backprop", usual(guided_backprop=guided))
    warning = (
        f"; its maps barely change when the top layer is randomised (rank correlation .{100 * correlation:.0f} ± .01): "
        "do not use them to debug the top layers."
    )
    assert text.endswith(warning) is said


def test_that_warning_stands_also_where_the_method_is_at_chance() -> None:
    weak = method("deconvnet", (0.17, 0.02), baselines=NOT_ABOVE, randomised_top=interval((1.0, 0.0), 20))
    assert sentence("deconvnet", usual(deconvnet=weak)) == (
        "Deconvnet is no better than random pixels or a blob in the centre on your 200 pictures (.17 ± .02; "
        "−.10 ± .03 against a blob in the centre); its maps barely change when the top layer is randomised (rank "
        "correlation 1.00 ± .00): do not use them to debug the top layers."
    )


def test_localisation_is_told_where_it_was_measured() -> None:
    located = method(
        "grad_cam",
        (0.39, 0.03),
        best=(-0.07, 0.02),
        baselines=ABOVE,
        pointing_game=interval((0.78, 0.06), 150),
        energy_inside=interval((0.451, 0.03), 150),
        best_iou=interval((0.4, 0.02), 149),
    )
    assert sentence("grad_cam", usual(grad_cam=located)).endswith(
        ". Localisation on 150 pictures: pointing game .78 ± .06, energy inside .45 ± .03, best IoU .40 ± .02."
    )


@pytest.mark.parametrize(
    ("name", "reason", "text"),
    [
        ("score_cam", "no layer has a map.", "Score-CAM has no map on any of your 200 pictures: no layer has a map."),
        ("integrated_gradients", "", "Integrated gradients have no map on any of your 200 pictures."),
        ("rise", "out of\n memory", "RISE has no map on any of your 200 pictures: out of memory."),
    ],
)
def test_a_method_without_any_map_says_why(name: str, reason: str, text: str) -> None:
    result = verdict(summary({name: method(name, None, seconds=None, failed=200, reason=reason)}, ["centre"]))
    assert result["sentences"] == {name: text}
    assert result["headline"] == "No method has a map of any picture, so there is no verdict."


def test_some_rivals_stand_for_many() -> None:
    near = {
        name: method(name, (0.44, 0.03), best=(-0.01, 0.02), of_kind=(-0.01, 0.02), baselines=ABOVE)
        for name in ("saliency", "smoothgrad", "deep_lift", "input_x_gradient")
    }
    first = method("grad_cam", (0.45, 0.03), baselines=ABOVE)
    of = summary({"grad_cam": first} | near, ["grad_cam", *near, "centre", "random pixels"])
    assert sentence("grad_cam", of) == (
        "On your 200 pictures Grad-CAM finds what the score rests on best (.45 ± .03); no difference to saliency, "
        "SmoothGrad and 2 others is shown."
    )


def test_a_single_method_is_compared_with_the_baselines() -> None:
    of = summary({"saliency": method("saliency", (0.26, 0.03), baselines=ABOVE)}, ["saliency", "centre"])
    assert sentence("saliency", of) == (
        "On your 200 pictures saliency finds what the score rests on better than every baseline (.26 ± .03; "
        "+.10 ± .02 against a blob in the centre)."
    )


def test_a_single_method_without_baselines_is_compared_with_nothing() -> None:
    of = summary({"saliency": method("saliency", (0.26, 0.03))}, ["saliency"], baselines=())
    assert sentence("saliency", of) == (
        "On your 200 pictures saliency finds what the score rests on by .26 ± .03, with nothing to compare it with."
    )


def test_one_of_the_images_alone_allows_no_claim() -> None:
    rare = method("score_cam", (0.6, 0.0), best=(0.1, 0.0), baselines=ABOVE, n=1, failed=199, reason="dead maps")
    of = usual(score_cam=rare)
    of["ranking"].insert(1, "score_cam")
    assert sentence("score_cam", of) == (
        "Score-CAM: insertion − deletion .60; .050 s a picture. It has no map on 199 of your 200 pictures: dead maps."
    )


def test_baselines_have_no_sentence() -> None:
    assert list(verdict(usual())["sentences"]) == [
        "integrated_gradients",
        "guided_backprop",
        "grad_cam",
        "occlusion",
        "deconvnet",
    ]


# ---- what is recommended


def test_the_cheapest_of_those_not_shown_to_be_worse_is_recommended_of_each_kind() -> None:
    assert verdict(usual())["recommended"] == ["guided_backprop", "grad_cam"]


def test_the_headline_names_the_recommended_and_the_best() -> None:
    assert verdict(usual())["headline"] == (
        "For this model use guided backprop for detail and Grad-CAM for regions. Best by insertion − deletion on your "
        "200 pictures: integrated gradients (.46 ± .03)."
    )


def test_a_cheaper_method_that_is_worse_than_the_best_of_its_kind_is_not_recommended() -> None:
    worse = method("guided_backprop", (0.3, 0.03), best=(-0.16, 0.05), of_kind=(-0.16, 0.05), baselines=ABOVE)
    assert verdict(usual(guided_backprop=worse))["recommended"] == ["integrated_gradients", "grad_cam"]


def test_a_method_that_one_baseline_equals_is_not_recommended() -> None:
    half = {"centre": (0.01, 0.02), "random pixels": (0.2, 0.02)}
    equal = method("guided_backprop", (0.44, 0.03), best=(-0.02, 0.05), of_kind=(-0.02, 0.05), baselines=half)
    assert verdict(usual(guided_backprop=equal))["recommended"] == ["integrated_gradients", "grad_cam"]


def test_a_method_without_a_map_for_some_images_is_not_recommended() -> None:
    fails = method(
        "guided_backprop", (0.44, 0.03), best=(-0.02, 0.05), of_kind=(-0.02, 0.05), baselines=ABOVE, n=199, failed=1
    )
    assert verdict(usual(guided_backprop=fails))["recommended"] == ["integrated_gradients", "grad_cam"]


def test_a_kind_without_a_method_above_the_baselines_is_left_out() -> None:
    chance = {
        name: method(name, (0.2, 0.03), best=(-0.26, 0.05), baselines=NOT_ABOVE) for name in ("grad_cam", "occlusion")
    }
    result = verdict(usual(**chance))
    assert result["recommended"] == ["guided_backprop"]
    assert result["headline"].startswith("For this model use guided backprop for detail. Best by ")


def test_nothing_above_the_baselines_recommends_nothing() -> None:
    of = summary({"deconvnet": method("deconvnet", (0.17, 0.02), baselines=NOT_ABOVE)}, ["centre", "deconvnet"])
    result = verdict(of)
    assert result["recommended"] == []
    assert result["headline"] == (
        "No method is shown to be better than every baseline on your 200 pictures: none is recommended."
    )


def test_methods_that_all_fail_on_some_images_are_not_recommended() -> None:
    fails = method("saliency", (0.4, 0.02), baselines=ABOVE, n=150, failed=50, reason="no layer")
    result = verdict(summary({"saliency": fails}, ["saliency", "centre", "random pixels"]))
    assert result["recommended"] == []
    assert result["headline"] == (
        "Each method that is better than the baselines has no map on some pictures: none is recommended."
    )


def test_without_baselines_nothing_is_recommended() -> None:
    of = summary({"saliency": method("saliency", (0.26, 0.03))}, ["saliency"], baselines=())
    assert verdict(of)["recommended"] == []
    assert verdict(of)["headline"] == (
        "No baseline was measured, so no method is shown to be better than chance: none is recommended."
    )


# ---- few images, one, none; nothing of faithfulness


def few(n: int, pictures: int) -> dict[str, Any]:
    strong = method("saliency", (0.46, 0.1), baselines={"centre": (0.3, 0.1)}, n=n)
    weak = method("grad_cam", (0.2, 0.1), best=(-0.26, 0.1), baselines={"centre": (0.04, 0.1)}, n=n)
    methods = {"saliency": strong, "grad_cam": weak}
    return summary(methods, ["saliency", "grad_cam", "centre"], baselines=("centre",), pictures=pictures)


@pytest.mark.parametrize(
    ("n", "pictures", "headline"),
    [
        (7, 7, "Your 7 pictures are too few to recommend a method; evaluate at least 8, better 50."),
        (5, 200, "5 of your 200 pictures are too few to recommend a method; evaluate at least 8, better 50."),
    ],
)
def test_few_images_recommend_nothing(n: int, pictures: int, headline: str) -> None:
    result = verdict(few(n, pictures))
    assert (result["recommended"], result["headline"]) == ([], headline)
    assert f"{n} pictures are few: their intervals are rough." in result["notes"]


def test_eight_images_are_enough() -> None:
    assert verdict(few(8, 8))["recommended"] == ["saliency"]


def test_few_images_do_not_prove_a_method_to_be_at_chance() -> None:
    assert sentence("grad_cam", few(7, 7)) == (
        "Grad-CAM is not shown to be better than a blob in the centre on your 7 pictures (.20 ± .10; +.04 ± .10: no "
        "difference shown)."
    )


def test_one_image_gets_figures_without_claims() -> None:
    same = interval((1.0, 0.0), 1)
    saliency = method("saliency", (0.31, 0.0), baselines={"centre": (0.3, 0.0)}, n=1, randomised_top=same, seconds=1.25)
    of = summary({"saliency": saliency}, ["saliency", "centre"], baselines=("centre",), pictures=1)
    result = verdict(of)
    assert result["sentences"] == {"saliency": "Saliency: insertion − deletion .31; 1.2 s a picture."}
    assert result["headline"] == "One picture allows no verdict; evaluate at least 8, better 50."
    assert result["notes"] == [
        "Ranked by insertion − deletion, where more is better (Petsiuk et al. 2018, arXiv:1806.07421)."
    ]


def test_no_image_gets_no_verdict() -> None:
    result = verdict(summary({"saliency": method("saliency", None, seconds=None)}, [], pictures=0, failures=3))
    assert result == {
        "headline": "No picture could be evaluated, so there is no verdict.",
        "recommended": [],
        "sentences": {"saliency": "Saliency: nothing was measured."},
        "notes": ["3 pictures could not be evaluated."],
    }


def test_without_faithfulness_figures_alone_are_told() -> None:
    top = interval((0.95, 0.02), 20)
    guided = method("guided_backprop", (0.7, 0.06), main="pointing_game", baselines=ABOVE, randomised_top=top)
    of = summary({"guided_backprop": guided}, ["guided_backprop", "centre"], main="pointing_game")
    result = verdict(of)
    assert result["recommended"] == []
    assert result["headline"] == (
        "Nothing that was measured tells how well the maps find what the score rests on (insertion, deletion, road and "
        "infidelity do): no method is ranked or recommended."
    )
    assert result["sentences"]["guided_backprop"] == (
        "Guided backprop: pointing game .70 ± .06, top layer random .95 ± .02; .050 s a picture; its maps barely "
        "change when the top layer is randomised (rank correlation .95 ± .02): do not use them to debug the top layers."
    )


def test_where_less_is_better_a_fall_below_the_baselines_is_the_better() -> None:
    good = method("saliency", (0.1, 0.02), baselines={"centre": (-0.2, 0.05)}, main="deletion")
    bad = method("grad_cam", (0.3, 0.02), best=(0.2, 0.05), baselines={"centre": (0.1, 0.05)}, main="deletion")
    methods = {"saliency": good, "grad_cam": bad}
    of = summary(methods, ["saliency", "centre", "grad_cam"], baselines=("centre",), main="deletion")
    result = verdict(of)
    assert result["recommended"] == ["saliency"]
    assert result["sentences"]["grad_cam"].startswith("Grad-CAM is no better than a blob in the centre ")
    assert result["notes"][0] == ("Ranked by deletion, where less is better (Petsiuk et al. 2018, arXiv:1806.07421).")


def test_the_notes_say_what_the_numbers_mean() -> None:
    of = usual()
    of["failures"] = [{"id": "a.jpg", "reason": "empty"}]
    assert verdict(of)["notes"] == [
        "Ranked by insertion − deletion, where more is better (Petsiuk et al. 2018, arXiv:1806.07421).",
        "± is half the width of a 95 % bootstrap interval over the pictures; differences are taken on the same "
        "pictures.",
        "The best method is chosen on the same pictures, which favours it a little.",
        "1 picture could not be evaluated.",
    ]


def test_records_become_a_verdict() -> None:
    """Each method's lead over the centre is the same on all images, so that the differences have no width."""
    leads = {"guided_backprop": 0.25, "grad_cam": 0.125, "deconvnet": 0.0, "centre": 0.0}
    records = [
        {
            "id": f"{n}.jpg",
            "methods": {
                name: {"seconds": 0.5, "values": {"faithfulness": n % 2 + lead}} for name, lead in leads.items()
            },
        }
        for n in range(8)
    ]
    settings = {
        "methods": {"guided_backprop": {}, "grad_cam": {}, "deconvnet": {}},
        "baselines": ["centre"],
        "metrics": ["insertion", "deletion"],
        "steps": 22,
    }
    result = verdict(summarise(records, settings))
    assert result["recommended"] == ["guided_backprop", "grad_cam"]
    assert result["sentences"]["grad_cam"].endswith("; −.12 ± .00), at about the same cost.")
    assert result["sentences"]["deconvnet"].startswith(
        "Deconvnet is no better than a blob in the centre on your 8 pictures (.50 ± "
    )
    assert result["sentences"]["deconvnet"].endswith("; .00 ± .00: no difference shown).")


# ---- numbers, names and costs


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.46, 0.03, "+.46 ± .03"),
        (-1.2, 0.25, "−1.20 ± .25"),
        (-0.001, 0.02, ".00 ± .02"),
        (0.0123, 0.0041, "+.012 ± .004"),
        (12.5, 0.0, "+12.50 ± .00"),
    ],
)
def test_numbers_are_printed_as_the_field_prints_them(value: float, half: float, text: str) -> None:
    assert wording.plus_minus(value, value - half, value + half, signed=True) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0312, ".031 s"), (1.25, "1.2 s"), (48.3, "48 s"), (0.0004, ".00040 s"), (312.0, "312 s")]
)
def test_seconds_have_two_digits(value: float, text: str) -> None:
    assert wording.seconds(value) == text


@pytest.mark.parametrize(
    ("of", "reference", "text"),
    [
        (0.1, 4.0, "at a fortieth of the cost"),
        (1.0, 2.0, "at half of the cost"),
        (0.7, 1.0, "at two thirds of the cost"),
        (0.9, 1.0, "at about the same cost"),
        (2.1, 1.0, "at twice the cost"),
        (7.2, 1.0, "at seven times the cost"),
        (12.0, 1.0, "at 10 times the cost"),
        (43.0, 1.0, "at 40 times the cost"),
        (1.0, 90000.0, "at a thousandth of the cost"),
        (0.0, 1.0, ""),
    ],
)
def test_costs_are_ratios_in_words(of: float, reference: float, text: str) -> None:
    assert wording.cost(of, reference) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("guided_backprop", "guided backprop"),
        ("guided_grad_cam", "guided Grad-CAM"),
        ("grad_cam_plus_plus", "Grad-CAM++"),
        ("input_x_gradient", "input × gradient"),
        ("smoothgrad", "SmoothGrad"),
        ("rise", "RISE"),
        ("my_own_method", "my own method"),
    ],
)
def test_methods_are_named_by_their_titles(name: str, text: str) -> None:
    assert wording.method_name(name) == text
