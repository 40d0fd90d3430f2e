"""Options as rows: their values, units and meanings, and where a value comes from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest

from convlens.jobs.config import from_mapping
from convlens.jobs.option_docs import as_words, option_rows
from convlens.models import Classifier
from convlens.report.job_page import OptionRow
from convlens.synth.adversarial import Fool
from convlens.synth.base import Job, SynthesisRun, job_class, job_kinds
from convlens.synth.deepdream import Dream
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.quilting import Quilt

NEEDED: dict[str, dict[str, Any]] = {
    "ascent": {"classes": ["koala"]},
    "dream": {"picture": "a.png"},
    "fool": {"picture": "a.png", "target": 1},
    "invert": {"picture": "a.png"},
}
SHIPPED = ("ascent", "dream", "efros", "fool", "invert", "quilt", "texture")


@dataclass(frozen=True, kw_only=True)
class Told(Job):
    """Draw ``dots``, and many of them. ``gap`` is how far apart they are; near ones touch; ``size`` how large, or
    ``gap``.
    """

    dots: int = 3
    gap: float = 1.5
    size: float = 2.0
    bare: str = ""
    own: int = field(default=7, metadata={"unit": "furlongs", "meaning": "How far it goes."})

    def begin(self, classifier: Classifier | None) -> SynthesisRun:
        raise NotImplementedError


def rows(job: Job, asked: Job | None = None, **facts: Any) -> dict[str, OptionRow]:
    return {row.name: row for row in option_rows(job, asked or job, facts)}


@pytest.mark.parametrize("kind", SHIPPED)
def test_every_option_of_every_kind_has_a_row_with_a_meaning(kind: str) -> None:
    assert kind in job_kinds()
    job = from_mapping({"kind": kind, **NEEDED.get(kind, {"source": "a.png"})})
    found = rows(job)
    unused = set() if job.needs_model else {"model"}
    assert set(found) == {each.name for each in fields(job_class(kind))} - unused
    assert [name for name, row in found.items() if not row.meaning] == []


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("dots", "Draw ``dots``, and many of them."),
        ("gap", "``gap`` is how far apart they are; near ones touch."),
        ("size", "``size`` how large, or ``gap``."),
        ("bare", ""),
        ("own", "How far it goes."),
    ],
)
def test_a_meaning_is_the_clause_of_the_docstring_that_names_the_option(name: str, meaning: str) -> None:
    assert rows(Told())[name].meaning == meaning


def test_a_field_that_says_its_unit_has_that_one() -> None:
    assert rows(Told())["own"].unit == "furlongs"


@pytest.mark.parametrize(
    ("job", "name", "unit"),
    [
        (Quilt(source="a"), "block", "pixels"),
        (Fool(picture="a", target=1, bound=2.0), "bound", "levels of 255"),
        (Fool(picture="a", target=1), "bound", ""),  # no value has no unit
        (Ascent(classes=(1,), rotate=3.0), "rotate", "degrees"),
        (Dream(picture="a"), "rate", "levels of 255"),
    ],
)
def test_a_value_is_shown_with_its_unit(job: Job, name: str, unit: str) -> None:
    assert rows(job)[name].unit == unit


def test_defaults_are_marked_and_come_after_what_was_given() -> None:
    found = option_rows(Told(gap=9.0), Told(gap=9.0), {})
    assert [row.name for row in found] == ["gap", "dots", "size", "bare", "own", "model", "seed"]
    assert [row.source for row in found] == ["", *["default"] * 6]


def test_an_option_without_a_default_is_not_marked() -> None:
    assert rows(Quilt(source="a"))["source"].source == ""


def test_a_value_of_the_preset_says_so() -> None:
    row = rows(Ascent(classes=(1,), preset="lucid"), rate=0.05)["rate"]
    assert (row.value, row.source) == ("0.05", "preset lucid")


def test_what_the_network_chose_says_so() -> None:
    asked = Dream(picture="a")
    row = rows(replace(asked, layers=("blocks.4.2", "head")), asked)["layers"]
    assert (row.value, row.source) == ("blocks.4.2, head", "chosen from the network")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"),
        ([], "none"),
        ("", "none"),
        (True, "yes"),
        (-2, "−2"),
        (0.00012345, "0.0001234"),
        (["koala", 3], "koala, 3"),
        ([[48, 64], [96, 128]], "48×64, 96×128"),
        ({"a_b": 1.5, "c": "d"}, "a b 1.5, c d"),
        ([{"a": 1}, {"a": 2}], "a 1; a 2"),
    ],
)
def test_plain_values_are_written_without_the_marks_of_json(value: Any, words: str) -> None:
    assert as_words(value) == words
