"""The page of a batch: done, failed, interrupted and older jobs, and what it does not overwrite."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import written
import yaml
from PIL import Image

from convlens.errors import JobError
from convlens.jobs import Entry, from_mapping, read_batch, run_batch, run_job
from convlens.jobs.batch_index import BatchIndex
from convlens.jobs.runner import OnProgress, Progress
from convlens.synth.base import Job
from convlens.synth.quilting import Quilt


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    return str(path)


def quilt(source: str, **more: int) -> Quilt:
    return Quilt(source=source, **{"height": 60, "width": 60, "block": 16} | more)


def cards(out: Path) -> dict[str, str]:
    """The HTML of each job's card by its name."""
    page = (out / "index.html").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for part in page.split('<li class="card" id="job-')[1:]:
        name, _, rest = part.partition('"')
        found[name] = rest.partition("</li>")[0]
    return found


def state(card: str) -> str:
    found = re.search(r'<span class="state \w+">([\w ]+)</span>', card)
    assert found
    return found.group(1)


def test_a_job_that_is_done_is_shown_with_its_image_and_a_link(tmp_path: Path, source: str) -> None:
    run_batch([Entry("laid", quilt(source))], tmp_path / "out")
    card = cards(tmp_path / "out")["laid"]
    assert state(card) == "done"
    assert 'src="laid/texture.png"' in card
    assert 'href="laid/index.html"' in card
    # 60 pixels take blocks at 0, 14, 28, 42 and 56 each way: of 16 pixels, overlapping by 2
    assert "25 blocks of the source" in card


def test_a_job_that_failed_is_shown_with_its_reason(tmp_path: Path, source: str) -> None:
    run_batch([Entry("bad", quilt(source, block=100)), Entry("good", quilt(source))], tmp_path / "out")
    found = cards(tmp_path / "out")
    assert (state(found["bad"]), state(found["good"])) == ("failed", "done")
    assert "blocks of 100 pixels are larger than the source of 48×48" in found["bad"]
    assert "href" not in found["bad"]


def test_after_an_interruption_the_index_says_how_far_each_job_is(tmp_path: Path, source: str) -> None:
    def watch(entry: Entry) -> OnProgress:
        def stop(now: Progress) -> None:
            if entry.name == "second" and now.done == 5:
                raise KeyboardInterrupt

        return stop

    entries = [Entry(name, quilt(source)) for name in ("first", "second", "third")]
    with pytest.raises(KeyboardInterrupt):
        run_batch(entries, tmp_path / "out", watch=watch)
    found = cards(tmp_path / "out")
    assert [state(card) for card in found.values()] == ["done", "interrupted", "not started"]
    assert "after 5 steps" in found["second"]
    assert "second/snapshots/step-000004.jpg" in found["second"]
    run_batch(entries, tmp_path / "out")
    assert [state(card) for card in cards(tmp_path / "out").values()] == ["done"] * 3


def test_jobs_of_version_0_1_are_shown_with_their_images_and_no_link_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written.copied(tmp_path)
    monkeypatch.chdir(folder)
    jobs: dict[str, Job] = {}
    for path in sorted(folder.glob("job-*/job.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        del values["identity"]
        jobs[path.parent.name] = from_mapping(values)
    BatchIndex(folder, jobs)
    found = cards(folder)
    assert {name: state(card) for name, card in found.items()} == {
        "job-ascent": "done", "job-ascent-interrupted": "interrupted",
        "job-quilt": "done", "job-quilt-interrupted": "interrupted",
    }  # fmt: skip
    for name in ("job-ascent", "job-quilt"):
        (image,) = re.findall(r'src="([^"]+)"', found[name])
        assert (folder / image).is_file()
        assert "href" not in found[name]  # the copies have no page


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"job": {}, "facts": {}, "files": {}}), "\x00"])
def test_a_damaged_manifest_is_one_job_s_failure(tmp_path: Path, source: str, content: str) -> None:
    run_batch([Entry("laid", quilt(source)), Entry("other", quilt(source))], tmp_path / "out")
    (tmp_path / "out" / "laid" / "manifest.json").write_text(content)
    BatchIndex(tmp_path / "out", {"laid": quilt(source), "other": quilt(source)})
    found = cards(tmp_path / "out")
    assert (state(found["laid"]), state(found["other"])) == ("failed", "done")
    assert "manifest.json is damaged" in found["laid"]


def test_a_page_of_something_else_is_not_overwritten(tmp_path: Path, source: str) -> None:
    page = tmp_path / "out" / "index.html"
    page.parent.mkdir()
    page.write_text("<h1>mine</h1>")
    with pytest.raises(JobError, match="is not the page of a batch; choose another folder"):
        run_batch([Entry("laid", quilt(source))], tmp_path / "out")
    assert page.read_text() == "<h1>mine</h1>"
    assert not (tmp_path / "out" / "laid").exists()


def test_a_job_s_own_folder_takes_no_batch(tmp_path: Path, source: str) -> None:
    run_job(quilt(source), tmp_path / "out")
    with pytest.raises(JobError, match="is the folder of one job; choose another folder for a batch"):
        run_batch([Entry("laid", quilt(source))], tmp_path / "out")


def test_no_job_is_called_like_the_index(tmp_path: Path) -> None:
    path = tmp_path / "batch.yaml"
    path.write_text("jobs: [{kind: quilt, source: a.png, name: index.html}]")
    with pytest.raises(JobError, match=r"'index\.html' is the page of the batch"):
        read_batch(path)
