"""Jobs as plain values and as YAML: what is understood, and what is refused with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from convlens.errors import JobError, RequestError
from convlens.jobs import from_mapping, read_batch, to_mapping
from convlens.jobs.config import identity
from convlens.synth.base import job_kinds
from convlens.synth.gradient_ascent import Ascent
from convlens.synth.quilting import Quilt


def test_there_is_a_job_for_each_kind_of_synthesis() -> None:
    assert {"ascent", "fool", "dream", "invert", "texture", "quilt", "efros"} <= set(job_kinds())


@pytest.mark.parametrize(
    "job",
    [
        Ascent(classes=("koala", 3), steps=7, start="zeros", preset="lucid"),
        Ascent(layer="first", channels=(1, 2), y=3, x=4, blur=1.0, parameter="pixels"),
        Quilt(source="a.png", tolerance=0.3),
    ],
)
def test_a_job_survives_yaml(job: Any) -> None:
    assert from_mapping(yaml.safe_load(yaml.safe_dump(to_mapping(job)))) == job


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({}, "kind", "a job is a mapping with its kind"),
        ({"kind": "ascnt"}, "kind", "no job 'ascnt'; did you mean ascent"),
        ({"kind": "ascent", "class": [1]}, "class", "ascent has no option 'class'; did you mean classes"),
        ({"kind": "ascent", "classes": [1], "steps": "many"}, "steps", "integer"),
        ({"kind": "ascent", "classes": [1], "steps": True}, "steps", "integer"),
        ({"kind": "ascent", "classes": "koala"}, "classes", "array"),
        ({"kind": "ascent", "classes": [1], "rate": float("nan")}, None, "numbers, words"),
        ({"kind": "ascent", "classes": [1], "steps": 0}, "steps", "1 or more"),
        ({"kind": "quilt"}, "source", "required"),
    ],
)
def test_what_is_no_job_is_refused(given: dict[str, Any], field: str | None, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        from_mapping(given)
    assert caught.value.field == field


def test_the_identity_is_that_of_options_weights_and_images(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    job = Quilt(source=str(image))
    first = identity(job, "w")
    assert identity(Quilt(source=str(image)), "w") == first
    assert identity(Quilt(source=str(image), seed=1), "w") != first
    assert identity(job, "v") != first
    image.write_bytes(b"two")
    assert identity(job, "w") != first
    image.unlink()
    with pytest.raises(JobError, match="cannot read"):
        identity(job, "w")


@pytest.fixture
def batch(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "batch.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


def test_a_batch_names_its_jobs_and_shares_defaults(batch: Callable[[Any], Path]) -> None:
    """A default is for those that have the option."""
    path = batch(
        {
            "defaults": {"seed": 4, "steps": 9},
            "jobs": [
                {"kind": "ascent", "classes": ["koala"]},
                {"kind": "ascent", "classes": [2], "steps": 3, "name": "two"},
                {"kind": "quilt", "source": "a.png"},
            ],
        }
    )
    first, second, third = read_batch(path)
    assert (first.name, first.job) == ("000-ascent", Ascent(classes=("koala",), seed=4, steps=9))
    assert (second.name, second.job) == ("two", Ascent(classes=(2,), seed=4, steps=3))
    assert (third.name, third.job) == ("002-quilt", Quilt(source="a.png", seed=4))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("jobs: [", "is no YAML"),
        ([], "should hold a list `jobs:`"),
        ({"jobs": []}, "should hold a list `jobs:`"),
        ({"jobs": [{"kind": "quilt", "source": "a"}], "default": {}}, "unknown key 'default'; did you mean defaults"),
        ({"jobs": [{"kind": "quilt", "source": "a"}], "defaults": 3}, "should be a mapping"),
        ({"jobs": ["quilt"]}, r"jobs\[0\] should be a mapping"),
        ({"jobs": [{"kind": "quilt", "source": "a", "name": "../x"}]}, r"'\.\./x' is no name for a folder"),
        (
            {"jobs": [{"kind": "quilt", "source": "a"}, {"kind": "quilt", "surce": "a"}]},
            r"jobs\[1\] \(001-quilt\): .*'surce'",
        ),
        ({"jobs": [{"kind": "quilt", "source": "a", "name": "x"}] * 2}, "two jobs are called 'x'"),
    ],
)
def test_what_is_no_batch_is_refused_before_anything_runs(
    batch: Callable[[Any], Path], content: Any, said: str
) -> None:
    with pytest.raises(JobError, match=said):
        read_batch(batch(content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot read"):
        read_batch(tmp_path / "none.yaml")
