"""The page of a batch: its jobs with their results and states, each linked to its own page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import convlens
from convlens.errors import JobError
from convlens.jobs import job_dir
from convlens.jobs.captions import address, kind_title, result_images, subject
from convlens.jobs.config import to_mapping
from convlens.report.job_page import BatchCard, render_batch
from convlens.synth.base import Job

_OURS = b'content="ConvLens batch index"'


class BatchIndex:
    """``out / index.html``, from what the jobs' folders in ``out`` hold; folders of older versions are shown as well.

    Written on construction and by each update. Raises JobError where ``out`` is a job's own folder, or holds an
    index.html of something else.
    """

    def __init__(self, out: Path, jobs: Mapping[str, Job]) -> None:
        self._out, self._jobs = out, jobs
        self._check()
        self._cards = {name: self._card(name, "") for name in jobs}
        self._write()

    def update(self, name: str, error: str = "") -> None:
        """Read the job's folder again; ``error`` is why it failed, empty where it did not."""
        self.update_all({name: error})

    def update_all(self, errors: Mapping[str, str]) -> None:
        """The same for several jobs, each with its error."""
        self._cards |= {name: self._card(name, error) for name, error in errors.items()}
        self._write()

    def _check(self) -> None:
        if (self._out / job_dir.DESCRIPTION).is_file():
            raise JobError(f"{self._out} is the folder of one job; choose another folder for a batch")
        page = self._out / job_dir.PAGE
        with job_dir.wrap_os_errors(page):
            if page.exists() and not (page.is_file() and _OURS in page.read_bytes()):
                raise JobError(f"{page} is not the page of a batch; choose another folder, or move it")

    def _write(self) -> None:
        title = self._out.resolve().name
        page = render_batch(title=title, cards=list(self._cards.values()), version=convlens.__version__)
        job_dir.write(self._out / job_dir.PAGE, page.encode())

    def _card(self, name: str, error: str) -> BatchCard:
        job = to_mapping(self._jobs[name])
        folder = self._out / name
        told = kind_title(job["kind"]), subject(job)
        if error:
            return BatchCard(name, *told, "failed", reason=error, image=_last_snapshot(folder, name))
        if job_dir.is_complete(folder):
            return _done(name, told, folder)
        if (folder / job_dir.DESCRIPTION).is_file():
            reason = f"Interrupted after {_steps(folder)} steps; run the batch again to resume."
            return BatchCard(name, *told, "interrupted", reason=reason, image=_last_snapshot(folder, name))
        return BatchCard(name, *told, "waiting")


def _done(name: str, told: tuple[str, str], folder: Path) -> BatchCard:
    page = address(name, job_dir.PAGE) if (folder / job_dir.PAGE).is_file() else ""
    manifest = _read_manifest(folder)
    if manifest is None:
        reason = f"{job_dir.MANIFEST} is damaged; remove the folder and run the batch again"
        return BatchCard(name, *told, "failed", reason=reason, page=page)
    stems = [Path(file).stem for file in manifest["files"] if file.endswith(".png")]
    images = result_images(manifest["job"]["kind"], stems[:1], manifest["facts"], name)
    headline = f"{images[0].title}: {images[0].headline}" if images and images[0].headline else ""
    return BatchCard(name, *told, "done", headline, page=page, image=images[0].address if images else "")


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest with its job, facts and files; None where it is none."""
    try:
        manifest = json.loads((folder / job_dir.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict):
        return None
    parts = (manifest.get(name) for name in ("job", "facts", "files"))
    return manifest if all(isinstance(part, dict) for part in parts) and "kind" in manifest["job"] else None


def _last_snapshot(folder: Path, name: str) -> str:
    snapshots = job_dir.snapshots(folder)
    return address(name, f"{job_dir.SNAPSHOTS}/{snapshots[-1][1].name}") if snapshots else ""


def _steps(folder: Path) -> int:
    path = folder / job_dir.LOSSES
    with job_dir.wrap_os_errors(path):
        return path.read_bytes().count(b"\n") if path.is_file() else 0
