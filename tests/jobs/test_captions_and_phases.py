"""What a job's images are called, what its curve measures and which phases its run has."""

from __future__ import annotations

from typing import Any

import pytest

from convlens.jobs import to_mapping
from convlens.jobs.captions import fact_rows, kind_title, result_images, subject
from convlens.jobs.objective_curve import measure_of, parts_of, phases_of
from convlens.report.curves import Phase
from convlens.synth.adversarial import Fool
from convlens.synth.base import Job
from convlens.synth.deepdream import Dream
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.gram_texture import Texture
from convlens.synth.quilting import Quilt

NAN = float("nan")
KOALA = {"index": 105, "label": "koala", "probability": 0.25, "logit": 3.0}
CAT = {"index": 281, "label": "tabby", "probability": 0.75, "logit": 4.0}
FOOL = Fool(picture="a", target=1, margin=0.5)


# ---- captions


@pytest.mark.parametrize(
    ("kind", "facts", "title", "headline"),
    [
        (
            "ascent",
            {"targets": [{"name": "koala", "layer": "", "rank": 0, "probability": 0.25, "predicted": [KOALA]}]},
            "koala",
            "25.0 %, predicted first",
        ),
        (
            "ascent",
            {"targets": [{"name": "koala", "rank": 4, "probability": 0.25}]},
            "koala",
            "25.0 %, predicted at place 5",
        ),
        ("ascent", {"targets": [{"name": "head 3", "layer": "head", "index": 3}]}, "head 3", "mean of the channel"),
        (
            "fool",
            {"before": [CAT], "after": [KOALA, CAT]},
            "Classified as koala",
            "koala 25.0 %; the original is tabby 75.0 %",
        ),
        ("dream", {"energy_ratio": 3.0}, "Dream", "3 times the layers' energy"),
        (
            "invert",
            {"layers": [{"layer": "stem", "normalised_error": 0.5, "error_over_pairwise": 0.25}]},
            "stem",
            "error 0.5, 0.25 of the distance between images",
        ),
        ("quilt", {"blocks": 9}, "Texture", "9 blocks of the source"),
    ],
)  # fmt: skip
def test_an_image_says_what_it_is_with_class_and_probability(
    kind: str, facts: dict[str, Any], title: str, headline: str
) -> None:
    (image,) = result_images(kind, ["00-stem"], facts)
    assert (image.title, image.headline) == (title, headline)


def test_predictions_stand_beside_the_image_in_their_order() -> None:
    (image,) = result_images("fool", ["fooled"], {"before": [CAT], "after": [KOALA, CAT]})
    assert [(each.label, each.text, each.share) for each in image.predictions] == [
        ("koala", "25.0 %", 0.25), ("tabby", "75.0 %", 0.75),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["ascent", "dream", "efros", "fool", "invert", "quilt", "texture", "of a plug-in"])
@pytest.mark.parametrize(
    "facts", [{}, {"targets": 3, "before": "x", "after": [1], "layers": [None], "energy_ratio": "a", "fell_by": None}]
)
def test_facts_of_another_version_leave_an_image_with_a_title(kind: str, facts: dict[str, Any]) -> None:
    (image,) = result_images(kind, ["the_image"], facts)
    assert image.title
    assert image.address == "the_image.png"


def test_an_address_holds_for_every_file_name() -> None:
    (image,) = result_images("of a plug-in", ["a b#1%?"], {}, "job")
    assert image.address == "job/a%20b%231%25%3F.png"


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Ascent(classes=("koala", 3)), "koala, 3"),
        (Ascent(layer="head", channels=(1, 2)), "head, channels 1, 2"),
        (Ascent(layer="head"), "head"),
        (Fool(picture="pictures/cat.jpg", target="koala"), "cat.jpg as koala"),
        (Fool(picture="cat.jpg", target=0), "cat.jpg as 0"),
        (Quilt(source="/a/bricks.png"), "bricks.png"),
    ],
)
def test_a_job_is_called_by_what_it_is_about(job: Job, said: str) -> None:
    assert subject(to_mapping(job)) == said


def test_a_kind_without_a_name_keeps_its_own() -> None:
    assert kind_title("of a plug-in") == "of a plug-in"


def test_facts_are_rows_with_units_and_none_that_the_options_show() -> None:
    job = to_mapping(Ascent(classes=("koala",), preset="lucid"))
    facts = {"targets": [KOALA], "rate": 0.05, "psnr_db": 41.25, "values_changed": 0.5, "of_mine": [1, 2]}
    assert fact_rows(job, facts) == [
        ("PSNR of the change", "41.25 dB"), ("Values changed", "50.0 %"), ("of mine", "1, 2"),
    ]  # fmt: skip


def test_a_fact_that_differs_from_its_option_is_shown() -> None:
    job = to_mapping(Quilt(source="a", overlap=0))
    assert fact_rows(job, {"overlap": 8}) == [("Overlap used", "8 pixels")]
    assert fact_rows(job | {"overlap": 8}, {"overlap": 8}) == []


# ---- curves


@pytest.mark.parametrize(
    ("job", "facts", "losses", "phases"),
    [
        (
            Dream(picture="a", octaves=2, steps=3, frames=2, frame_steps=2),
            {"octaves": [[48, 64], [67, 90]]},
            [0.0] * 10,
            [("octave 1: 64×48 pixels", 1, 3), ("octave 2: 90×67 pixels", 4, 6), ("zoom, frame by frame", 7, 10)],
        ),
        (
            Texture(source="a", scales=3, steps=4, height=256, width=128, source_side=128),
            {},
            [0.0] * 12,
            [("scale 1: 32×64 pixels", 1, 4), ("scale 2: 64×128 pixels", 5, 8), ("scale 3: 128×256 pixels", 9, 12)],
        ),
        (
            # The noise of 100 steps falls over the last 15: it is whole where 15 or more steps are left.
            Ascent(classes=(1,)),
            {"redirect_steps": 16, "settle": 0.15, "grain": 0.25},
            [0.0] * 100,
            [
                ("gradients pass inactive ReLUs", 1, 16), ("search", 17, 85),
                ("the noise of each step falls to 0", 86, 100),
            ],
        ),
        (Ascent(classes=(1,)), {"redirect_steps": 0, "settle": 0.0, "grain": 0.0}, [0.0] * 9, []),
        (Dream(picture="a", octaves=2, steps=3), {}, [0.0] * 5, [("octave 1", 1, 3), ("octave 2", 4, 5)]),
        (Dream(picture="a", octaves=2, steps=3), {}, [0.0] * 2, []),
        (Quilt(source="a"), {}, [0.0] * 5, []),
    ],
)  # fmt: skip
def test_the_phases_of_a_run_are_those_of_its_options(
    job: Job, facts: dict[str, Any], losses: list[float], phases: list[tuple[str, int, int]]
) -> None:
    assert phases_of(to_mapping(job), facts, {"objective": losses}) == [Phase(*phase) for phase in phases]


def test_a_run_that_logs_one_layer_after_another_has_a_phase_for_each() -> None:
    losses = {"objective": [3.0, 2.0, 4.0], "stem": [3.0, 2.0, NAN], "head": [NAN, NAN, 4.0]}
    assert phases_of({"kind": "invert"}, {}, losses) == [Phase("stem", 1, 2), Phase("head", 3, 3)]


@pytest.mark.parametrize(
    ("leads", "phases"),
    [
        ([-3.0, 0.4, 0.6, 0.1], [Phase("until the network is fooled", 1, 2), Phase("towards a smaller change", 3, 4)]),
        ([-3.0, 0.5], []),
    ],
)
def test_fooling_turns_where_the_lead_first_exceeds_the_margin(leads: list[float], phases: list[Phase]) -> None:
    losses = {"objective": [0.0] * len(leads), "lead": leads}
    assert phases_of(to_mapping(FOOL), {}, losses) == phases


def test_a_value_that_repeats_the_objective_has_no_curve_of_its_own() -> None:
    losses = {"objective": [1.0, 2.0], "koala": [1.0, NAN], "lead": [3.0, 4.0]}
    assert list(parts_of(losses)) == ["lead"]


def test_the_curve_says_what_it_measures() -> None:
    assert measure_of(to_mapping(Ascent(classes=(1,)))) == "logit of the class"
    assert measure_of(to_mapping(Ascent(classes=(1, 2)))) == "mean logit of the classes"
    assert "activation" in measure_of(to_mapping(Ascent(layer="head")))
    assert measure_of({"kind": "of a plug-in"}) == "objective"
