"""The page of a job: its curve drawn right, its words only words."""

from __future__ import annotations

import math
import re
from typing import Any

from convlens.report.pages import LinkedImage, polyline_points, render_job

NAN = float("nan")


def page(**more: Any) -> str:
    given: dict[str, Any] = {
        "title": "ascent: koala",
        "facts": [("model", "m")],
        "figures": [],
        "images": [LinkedImage("00-koala.png", "koala")],
        "snapshots": [LinkedImage("snapshots/step-000001.jpg", "step 1")],
        "objective": [1.0, 3.0, 2.0],
        "video": "",
        "results": [("rank", "0")],
        "description": "kind: ascent",
    }
    return render_job(**given | more)


def points(values: list[float]) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in polyline_points(values).split()]  # type: ignore[misc]


def test_the_line_runs_from_left_to_right_with_the_largest_on_top() -> None:
    assert points([1.0, 3.0, 2.0]) == [(0.0, 220.0), (360.0, 0.0), (720.0, 110.0)]


def test_what_is_no_number_is_left_out_and_little_is_no_line() -> None:
    assert points([1.0, NAN, 2.0]) == [(0.0, 220.0), (720.0, 0.0)]
    assert polyline_points([]) == polyline_points([1.0]) == polyline_points([NAN, math.inf]) == ""
    assert points([5.0, 5.0]) == [(0.0, 220.0), (720.0, 220.0)]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    result = points([float(n) for n in range(10_000)])
    assert len(result) <= 600
    assert (result[0], result[-1]) == ((0.0, 220.0), (720.0, 0.0))


def test_all_parts_of_a_job_are_on_its_page() -> None:
    result = page(figures=[LinkedImage("sheet.png", "sheet")], video="video.mp4")
    for shown in ("00-koala.png", "sheet.png", "snapshots/step-000001.jpg", "video.mp4", "<polyline", "kind: ascent"):
        assert shown in result
    assert "<polyline" not in page(objective=[1.0])


def test_hostile_words_stay_words() -> None:
    bad = '"><script>alert(1)</script>'
    result = page(
        title=bad, images=[LinkedImage(bad, bad)], results=[(bad, bad)], description=bad, facts=[(bad, bad)], video=bad
    )
    assert "<script" not in result
    assert not re.search(r'src="[^"]*"><script', result)
    assert "default-src 'none'" in result
