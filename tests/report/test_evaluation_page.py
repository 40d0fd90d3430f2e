"""The page of an evaluation as text: each number where it belongs, and nothing that goes in can break out."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import evaluations
import pytest
from strict_page import Page

from convlens.errors import ConvLensError
from convlens.report.curves import draw_panel, shared_scale
from convlens.report.evaluation_page import render_evaluation, write_evaluation_page

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "double quote": '" onload="alert(1)',
    "single quote": "' onload='alert(1)",
    "end of a raw element": "</title></style></script><b>",
    "template": "{{ 7 * 7 }}{% raw %}",
    "address": "javascript:alert(1)",
}


def page(**changes: Any) -> str:
    parts: dict[str, Any] = {
        "settings": evaluations.settings(),
        "summary": evaluations.summary(),
        "verdict": evaluations.verdict(),
        "records": evaluations.records(),
        "maps": {"saliency": {"n0144.jpg": "maps/0001-saliency.png"}},
    }
    return render_evaluation(**parts | changes)


def words(markup: str) -> str:
    """The text without its tags, with single spaces; narrow ones stay."""
    return re.sub("[ \n]+", " ", html.unescape(re.sub("<[^>]+>", " ", markup))).strip()


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the table of methods as plain text, by the method's name."""
    table = text[text.index('id="methods"') :]
    body = re.search(r"<tbody>(.*?)</tbody>", table, re.DOTALL)
    assert body
    found = {}
    for row in re.findall(r"<tr.*?</tr>", body.group(1), re.DOTALL):
        cells = [words(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
        found[re.sub(" (baseline|recommended)$", "", cells[0])] = cells
    return found


# ---- the table


def test_methods_and_baselines_stand_by_the_main_metric_with_those_that_failed_last() -> None:
    names = list(rows(page()))
    assert names[:2] == ["Integrated gradients", "Smooth grad"]
    # .27 of the centre is above saliency's .26
    assert names[5:10] == ["Centre", "Saliency", "Edges", "Random blobs", "Random pixels"]
    assert names[-1].startswith("Score cam")


def test_a_lower_main_metric_ranks_the_other_way_round() -> None:
    summary = evaluations.summary() | {"main_metric": "deletion"}
    assert next(iter(rows(page(summary=summary)))) == "Integrated gradients"  # .16 is the least
    assert [*rows(page(summary=summary))][-2] == "Random blobs"  # .24 the most


def test_each_cell_holds_the_mean_and_half_the_width_of_its_interval() -> None:
    cells = rows(page())["Guided backprop"]
    # insertion − deletion, to the best, insertion and on the logit, deletion with its third decimal, ROAD
    assert cells[1:7] == [".39 ± .03", "−.07 ± .05", ".57 ± .03", "5.70 ± .40", ".180 ± .004", ".28 ± .03"]
    assert cells[-1] == "31 ms"


def test_the_best_mean_of_a_column_is_said_in_words_and_never_a_baseline_s() -> None:
    found = rows(page())
    assert found["Integrated gradients"][1] == "★ best: .46 ± .03"
    summary = evaluations.summary()
    summary["methods"]["centre"]["metrics"]["insertion"]["mean"] = 0.9
    found = rows(page(summary=summary))
    assert found["Integrated gradients"][3] == "★ best: .62 ± .03"
    assert "best" not in found["Centre"][3]
    assert not [cells[7] for cells in found.values() if "best" in cells[7]]  # sparseness has no better direction


@pytest.mark.parametrize(
    ("low", "high", "note"),
    [(-0.09, 0.01, " no difference shown"), (-0.08, 0.0, " no difference shown"), (-0.08, -0.01, "")],
    ids=["holds 0", "ends at 0", "below 0"],
)
def test_no_difference_is_said_where_the_interval_holds_0(low: float, high: float, note: str) -> None:
    summary = evaluations.summary()
    summary["methods"]["occlusion"]["against_best"] = {"difference": -0.04, "low": low, "high": high, "n": 200}
    cell = rows(page(summary=summary))["Occlusion"][2]
    half = f"{(high - low) / 2:.2f}".removeprefix("0")
    assert cell == f"−.04 ± {half}" + note


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.456, ".46"), (-0.456, "−.46"), (0.999, "1.00"), (0.0, ".00"), (12.345, "12.35"), (-12.344, "−12.34"),
        (0.000041, "4.1 × 10⁻⁵"), (-0.0041, "−4.1 × 10⁻³"), (1234567.0, "1\u202f234\u202f567"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_the_field_prints_them(value: float, text: str) -> None:
    summary = evaluations.summary()
    summary["methods"]["occlusion"]["metrics"]["sparseness"] = evaluations.interval(value, None, 1)
    assert rows(page(summary=summary))["Occlusion"][7] == text


def test_a_method_without_maps_says_why_and_has_no_numbers() -> None:
    cells = next(cells for name, cells in rows(page()).items() if name.startswith("Score cam"))
    assert cells[0] == "Score cam no map of 200 pictures: score_cam needs a layer with a map, and head has none"
    assert set(cells[1:]) == {"– not measured"}


def test_one_picture_gives_figures_without_intervals_and_without_a_best() -> None:
    text = page(summary=evaluations.summary(pictures=1, intervals=False))
    table = text[text.index('id="methods"') : text.index("</table>")]
    assert "±" not in table
    assert "best: " not in table
    assert "Values of the one picture." in text
    assert "to the best" not in table
    assert rows(text)["Guided backprop"][1] == ".39"


# ---- words, curves, sanity checks, pictures, protocol


def test_headline_notes_sentences_and_recommended_methods_are_on_the_page() -> None:
    text = words(page())
    verdict = evaluations.verdict()
    for part in (verdict["headline"], *verdict["notes"], *verdict["sentences"].values()):
        assert part in text
    assert "Recommended Guided backprop , Grad cam Model" in text


def test_nothing_recommended_is_said() -> None:
    assert "Recommended no method Model" in words(page(verdict=evaluations.verdict(())))


def test_better_titles_take_the_place_of_names() -> None:
    text = page(titles={"grad_cam": "Grad-CAM"})
    assert "Grad-CAM" in rows(text)
    assert "Grad cam" not in text


def test_a_curve_runs_from_left_to_right_with_the_largest_on_top_and_its_interval_around_it() -> None:
    curve = {"fraction": [0.0, 0.5, 1.0], "mean": [0.0, 0.5, 1.0], "low": [0.0, 0.4, 1.0], "high": [0.0, 0.6, 1.0]}
    scale = shared_scale([curve])
    # The field is 34..248 across and 142..22 up: 0, .5 and 1 are at 142, 82 and 22, and .1 is 12 units.
    panel = draw_panel("Name", [curve, None], [], scale)
    assert panel.lines == ("34.0,142.0 141.0,82.0 248.0,22.0", "")
    assert panel.bands[0] == "34.0,142.0 141.0,70.0 248.0,22.0 248.0,22.0 141.0,94.0 34.0,142.0"
    assert [(tick.at, tick.text) for tick in scale.ticks][:2] == [(142.0, "0.0"), (118.0, "0.2")]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.1, 0.38], ["0.0", "0.1", "0.2", "0.3", "0.4"]),
        ([-1.5, 9.5], ["−5", "0", "5", "10"]),
        ([0.0, 0.0], ["0.0", "0.2"]),
        ([None, 0.05], ["0.00", "0.01", "0.02", "0.03", "0.04", "0.05"]),
    ],
)
def test_axes_begin_at_0_or_below_and_have_round_steps(values: list[float | None], texts: list[str]) -> None:
    scale = shared_scale([{"fraction": [0, 1], "mean": values}])
    assert [tick.text for tick in scale.ticks] == texts


def test_a_curve_without_interval_has_no_band_and_gaps_are_left_out() -> None:
    curve = {"fraction": [0, 0.5, 1], "mean": [0.0, None, 1.0], "low": [None] * 3, "high": [None] * 3}
    panel = draw_panel("Name", [curve], [], shared_scale([curve]))
    assert (panel.lines, panel.bands) == (("34.0,142.0 248.0,22.0",), ("",))


def test_every_method_with_curves_has_a_panel_that_is_described_in_words() -> None:
    result = Page(page())
    labels = [each["aria-label"] or "" for each in result.all("svg") if each.get("role") == "img"]
    # insertion and deletion, the same on the logit, and ROAD, of ten methods and baselines each
    assert len(labels) == 3 * len(evaluations.MEANS)
    assert "Occlusion: solid line from 0.01 to 0.72, dashed line from 0.72 to 0.01" in labels


def test_what_was_not_measured_has_no_section() -> None:
    summary = evaluations.summary()
    for method in summary["methods"].values():
        method["curves"] = method["randomisation"] = {}
        method["best"] = method["worst"] = []
    text = page(summary=summary)
    for heading in ("Curves", "With random weights", "Best and worst pictures"):
        assert f">{heading}</h2>" in page()
        assert f">{heading}</h2>" not in text


def test_each_stage_of_the_randomisation_is_a_column_with_its_correlation() -> None:
    text = page()
    strip = text[text.index('class="matrix strip"') :]
    head, body = strip[: strip.index("</thead>")], strip[: strip.index("</tbody>")]
    assert re.findall(r"<bdi>(.*?)</bdi>", head) == list(evaluations.STAGES)
    row = body[body.index("Guided backprop") :].split("</tr>")[0]
    assert re.findall(r">([^<]+)</data>", row) == ["1.00", ".99", ".98", ".72", ".50", ".23"]
    assert re.findall(r'bar-part" width="([\d.]+)"', row) == ["100.0", "99.0", "98.0", "72.0", "50.0", "23.0"]


def test_a_stage_that_failed_and_a_negative_correlation_have_no_bar() -> None:
    summary = evaluations.summary()
    summary["methods"]["occlusion"]["randomisation"]["cascading"]["spearman"]["mean"][:2] = [None, -0.3]
    text = page(summary=summary)
    strip = text[text.index('class="matrix strip"') :]
    row = strip[strip.index("Occlusion") :].split("</tr>")[0]
    assert re.findall(r">([^<]+)</data>", row)[:2] == ["no map", "−.30"]
    assert re.findall(r'bar-part" width="([\d.]+)"', row)[:2] == ["0.0", "0.0"]


def test_best_and_worst_pictures_are_linked_with_their_label_and_value() -> None:
    text = page(maps={"saliency": {"n0144.jpg": "maps/1 #a?%41.png"}})
    assert [each["src"] for each in Page(text).all("img")] == ["maps/1%20%23a%3F%2541.png"]
    figure = Page(text[text.index("<img") : text.index("</figcaption>", text.index("<img"))] + "</figcaption>").text
    assert figure.split() == [".70", "tiger", "cat", "n0144.jpg"]


def test_all_settings_are_told_also_those_without_a_name_of_their_own() -> None:
    text = Page(page(settings=evaluations.settings() | {"new_thing": [1, "b"]})).text
    for name, value in (("steps of a curve", "22"), ("insertion starts from", "blur"), ("new thing", "1, b")):
        assert re.search(rf"{name}\s*{value}", text)
    assert re.search(r"Occlusion\s*window=48", text)


def test_pictures_left_out_are_listed_and_many_are_counted() -> None:
    summary = evaluations.summary()
    assert "broken.jpg: the JPEG ends in the middle" in Page(page(summary=summary)).text
    summary["failures"] = [{"id": f"{n}.jpg", "reason": "empty"} for n in range(130)]
    text = Page(page(summary=summary)).text
    assert "99.jpg: empty" in text
    assert "100.jpg" not in text
    assert "30 more in evaluation.json" in text
    assert "130 unreadable" in text


# ---- safety and files


def everywhere(text: str) -> dict[str, Any]:
    """An evaluation that holds the text wherever the user's words go."""
    summary, verdict, records = evaluations.summary(), evaluations.verdict(), evaluations.records()
    summary["methods"]["saliency"]["failed"] = {"count": 1, "reason": text}
    summary["methods"]["saliency"]["best"] = [text]
    summary["failures"] = [{"id": text, "reason": text}]
    verdict |= {"headline": text, "notes": [text]}
    verdict["sentences"]["saliency"] = text
    settings = evaluations.settings() | {"model": text, "weights_sha256": text, "stages": [text] * 6}
    settings["methods"]["saliency"] = {text: text}
    return {
        "settings": settings,
        "summary": summary,
        "verdict": verdict,
        "records": [*records, {**records[0], "id": text, "label": text}],
        "maps": {"saliency": {text: text}},
        "titles": {"saliency": text},
    }


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_appears_as_text_and_adds_no_element(text: str) -> None:
    hostile, calm = Page(page(**everywhere(text))), Page(page(**everywhere("x")))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in calm.elements]
    assert [set(attributes) for _, attributes in hostile.elements] == [set(each) for _, each in calm.elements]
    assert text in hostile.text
    assert not [each["src"] for each in hostile.all("img") if (each["src"] or "").startswith("javascript:")]


def test_the_policy_forbids_whatever_the_page_does_not_hold_itself() -> None:
    result = Page(page())
    policy = next(each["content"] or "" for each in result.all("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'; img-src 'self' file: data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not [value for name in ("style", "onclick", "onload") for value in result.values(name)]
    assert {value for value in result.values("href") if not value.startswith("#")} == {
        "data:,", "evaluation.json", "records.jsonl", "methods.csv", "pictures.csv",
    }  # fmt: skip


def test_the_page_is_written_whole_and_the_same_twice(tmp_path: Path) -> None:
    parts = {name: getattr(evaluations, name)() for name in ("settings", "summary", "verdict", "records")}
    path = write_evaluation_page(tmp_path, **parts)
    first = path.read_bytes()
    assert write_evaluation_page(tmp_path, **parts).read_bytes() == first
    assert [each.name for each in tmp_path.iterdir()] == ["index.html"]
    with pytest.raises(ConvLensError, match="existing folder"):
        write_evaluation_page(tmp_path / "none", **parts)
