"""The pages of a job and of a batch: histories drawn right, every part shown, words only words."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from convlens.report.curves import NARROW, PANEL, WIDE, Frame, Phase, draw_history
from convlens.report.job_page import (
    BatchCard,
    JobFiles,
    LinkedImage,
    Objective,
    OptionRow,
    Prediction,
    ResultImage,
    render_batch,
    render_job,
)

NAN = float("nan")
BAD = '"><script>alert(1)</script>'
# A field of 100 by 100 units, so that what a value becomes can be read off.
SQUARE = Frame(120, 120, left=10, right=110, top=5, bottom=105)


def page(**more: Any) -> str:
    given: dict[str, Any] = {
        "kind": "Activation maximisation",
        "title": "koala",
        "about": [("Model", "m")],
        "images": [ResultImage("00-koala.png", "koala", "97.0 %", [Prediction("koala", "97.0 %", 0.97)])],
        "figures": [],
        "facts": [("PSNR", "41 dB")],
        "objective": Objective("mean logit", [1.0, 3.0, 2.0], [Phase("first", 1, 2), Phase("second", 3, 3)]),
        "snapshots": [LinkedImage("snapshots/step-000001.jpg", "Step 1", "objective 1")],
        "options": [OptionRow("steps", "3", "steps", "How many ``steps`` it makes.", "default", is_default=True)],
        "provenance": [("Seed", "0")],
        "files": JobFiles("", ["manifest.json"]),
    }
    return render_job(**given | more)


def card(**more: Any) -> BatchCard:
    return BatchCard(**{"name": "a", "kind": "DeepDream", "subject": "cat.jpg", "state": "done"} | more)


def points(text: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in text.split()]  # type: ignore[misc]


def lines(values: list[float], **more: Any) -> list[list[tuple[float, float]]]:
    history = draw_history(values, (), SQUARE, **more)
    assert history is not None
    return [points(line) for line in history.lines]


# ---- histories


def test_a_history_runs_from_left_to_right_on_an_axis_of_round_steps() -> None:
    # 0, 5 and 10 lie on an axis from 0 to 10: at the bottom, in the middle, on top.
    assert lines([0.0, 5.0, 10.0]) == [[(10.0, 105.0), (60.0, 55.0), (110.0, 5.0)]]


def test_a_step_without_a_value_interrupts_the_line() -> None:
    first, second = lines([0.0, 10.0, NAN, 10.0, 0.0])
    assert first == [(10.0, 105.0), (35.0, 5.0)]
    assert second == [(85.0, 5.0), (110.0, 105.0)]


@pytest.mark.parametrize("values", [[], [1.0], [NAN, math.inf], [1.0, NAN]])
def test_fewer_than_two_values_are_no_history(values: list[float]) -> None:
    assert draw_history(values) is None


@pytest.mark.parametrize("value", [5.0, 0.0, -3.0])
def test_a_constant_is_a_level_line_within_the_axes(value: float) -> None:
    ((start, end),) = lines([value, value])
    assert start[1] == end[1]
    assert 5 <= start[1] <= 105


def test_a_loss_over_decades_has_a_logarithmic_axis_with_powers_of_ten() -> None:
    history = draw_history([100.0, 10.0, 1.0], (), SQUARE, is_loss=True)
    assert history is not None
    assert [tick.text for tick in history.scale.ticks] == ["1", "10", "100"]
    assert [y for _, y in points(history.lines[0])] == [5.0, 55.0, 105.0]


@pytest.mark.parametrize(
    ("values", "is_loss"), [([100.0, 1.0], False), ([50.0, 1.0], True), ([100.0, 0.0], True), ([100.0, -1.0], True)]
)
def test_all_other_values_have_a_linear_axis(values: list[float], is_loss: bool) -> None:
    history = draw_history(values, (), SQUARE, is_loss=is_loss)
    assert history is not None
    assert not history.scale.is_logarithmic


def test_a_long_history_is_thinned_and_keeps_its_ends_and_a_single_spike() -> None:
    values = [0.0] * 10_000
    values[7321] = 10.0
    (line,) = lines(values)
    assert len(line) <= 620
    assert (line[0], line[-1]) == ((10.0, 105.0), (110.0, 105.0))
    assert (round(10 + 100 * 7321 / 9999, 1), 5.0) in line


def test_the_axis_of_steps_begins_at_one_and_goes_on_in_round_numbers() -> None:
    history = draw_history([float(n) for n in range(101)], (), SQUARE)
    assert history is not None
    assert [(tick.at, tick.text) for tick in history.steps] == [
        (10.0, "1"), (59.0, "50"), (109.0, "100"),
    ]  # fmt: skip


def test_phases_meet_halfway_between_their_steps_and_cover_the_axis() -> None:
    # Eleven steps are 10 units apart; step 5 lies at 50 and step 6 at 60.
    history = draw_history([float(n) for n in range(11)], [Phase("a", 1, 5), Phase("b", 6, 11)], SQUARE)
    assert history is not None
    assert [(band.left, band.width, band.number) for band in history.bands] == [(10.0, 45.0, 1), (55.0, 55.0, 2)]


@pytest.mark.parametrize("frame", [PANEL, WIDE, NARROW])
def test_what_is_drawn_stays_within_its_frame(frame: Frame) -> None:
    history = draw_history([-3.0, 2e5, 7.0], [Phase("a", 1, 1), Phase("b", 2, 3)], frame)
    assert history is not None
    for x, y in points(history.lines[0]):
        assert frame.left <= x <= frame.right
        assert frame.top <= y <= frame.bottom
    assert all(frame.left <= band.left and band.left + band.width <= frame.right for band in history.bands)


# ---- a job


def test_results_come_first_and_provenance_last() -> None:
    found = re.findall(r'<h2 id="(\w+)">', page())
    assert found == ["results", "objective", "intermediate", "options", "provenance"]


@pytest.mark.parametrize(
    "shown",
    [
        'src="00-koala.png"', "97.0 %", "sheet.png", "video.mp4", "snapshots/step-000001.jpg", "objective 1",
        "mean logit", "41 dB", "How many <code>steps</code> it makes.", "manifest.json",
    ],
)  # fmt: skip
def test_every_part_of_a_job_is_on_its_page(shown: str) -> None:
    assert shown in page(figures=[LinkedImage("sheet.png", "sheet")], files=JobFiles("video.mp4", ["manifest.json"]))


def test_phases_are_listed_under_the_curve_with_their_steps() -> None:
    text = re.sub(r"<[^>]+>", "", page())
    assert "1 first steps 1–2" in text
    assert "2 second step 3" in text


def test_a_meaning_that_several_options_share_is_written_once() -> None:
    shared = [OptionRow(name, "1", "", "What both mean.", "", is_default=False) for name in ("a", "b")]
    result = page(options=shared)
    assert (result.count("What both mean."), result.count("As above.")) == (1, 1)


def test_without_two_values_there_is_no_curve() -> None:
    result = page(objective=Objective("mean logit", [1.0]))
    assert "<polyline" not in result
    assert 'id="objective"' not in result


def test_hostile_words_stay_words_on_the_page_of_a_job() -> None:
    result = page(
        kind=BAD,
        title=BAD,
        about=[(BAD, BAD)],
        images=[ResultImage(BAD, BAD, BAD, [Prediction(BAD, BAD, 0.5)])],
        figures=[LinkedImage(BAD, BAD)],
        facts=[(BAD, BAD)],
        objective=Objective(BAD, [1.0, 2.0], [Phase(BAD, 1, 1), Phase(BAD, 2, 2)], [(BAD, [1.0, 2.0])]),
        snapshots=[LinkedImage(BAD, BAD, BAD)],
        options=[OptionRow(BAD, BAD, BAD, f"``{BAD}`` {BAD}", BAD, is_default=False)],
        provenance=[(BAD, BAD)],
        files=JobFiles(BAD, [BAD]),
    )
    assert "<script" not in result
    assert not re.search(r'="[^"]*"><script', result)


@pytest.mark.parametrize("made", [page(), render_batch(title="t", cards=[card()], version="1")])
def test_the_policy_allows_neither_scripts_nor_other_places(made: str) -> None:
    assert "default-src 'none'" in made
    assert "script-src" not in made
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", made)
    assert not re.search(r"\sstyle=", made)


# ---- a batch


def test_the_index_counts_states_and_links_each_page() -> None:
    cards = [
        card(name="good", page="good/index.html", image="good/dream.png", headline="Dream: 3 times the energy"),
        card(name="bad", state="failed", reason="blocks are larger than the source"),
        card(name="cut", state="interrupted", reason="Interrupted after 7 steps", image="cut/snapshots/step-4.jpg"),
        card(name="next", state="waiting"),
    ]
    result = render_batch(title="results", cards=cards, version="1.0")
    counts = re.findall(r"<div><dt>([\w ]+)</dt><dd>(\d+)</dd></div>", result)
    assert counts == [("Jobs", "4"), ("Done", "1"), ("Failed", "1"), ("Interrupted", "1"), ("Not started", "1")]
    assert 'href="good/index.html"' in result
    assert result.count("blocks are larger than the source") == 2  # above all jobs, and on its card
    assert "cut/snapshots/step-4.jpg" in result


def test_hostile_words_stay_words_on_the_index() -> None:
    cards = [card(name=BAD, kind=BAD, subject=BAD, headline=BAD, reason=BAD, page=BAD, image=BAD)]
    assert "<script" not in render_batch(title=BAD, cards=cards, version=BAD)
