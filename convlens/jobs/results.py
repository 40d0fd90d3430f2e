"""The results of a finished run as files: images, arrays, a video, the page and the manifest."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import convlens
from convlens import image
from convlens.errors import JobError
from convlens.jobs import job_dir
from convlens.jobs.captions import address, fact_rows, figure_title, kind_title, result_images, shown_figures, subject
from convlens.jobs.config import to_mapping
from convlens.jobs.loss_log import read_losses
from convlens.jobs.objective_curve import is_loss, measure_of, parts_of, phases_of
from convlens.jobs.option_docs import option_rows
from convlens.report.curves import Phase
from convlens.report.job_page import JobFiles, LinkedImage, Objective, brief, render_job
from convlens.synth.base import Job, Outcome
from convlens.types import Bytes8
from convlens.utils.files import atomic_write, sha256_of_file

_PACKAGES = ("torch", "torchvision", "numpy", "pillow")
_FRAMES_PER_SECOND = 24
_VIDEO = "video.mp4"


def write_outcome(out: Path, outcome: Outcome, *, video: bool) -> dict[str, str]:
    """Images and figures as PNG, arrays as .npy, with ``video`` the frames too; each file's sha256 by name."""
    digests = {}
    for stem, pixels in (*outcome.images.items(), *outcome.figures.items()):
        digests[f"{stem}.png"] = job_dir.write(out / f"{stem}.png", image.encode_png(pixels, level=6))
    for stem, values in outcome.arrays.items():
        memory = io.BytesIO()
        np.save(memory, np.asarray(values), allow_pickle=False)
        digests[f"{stem}.npy"] = job_dir.write(out / f"{stem}.npy", memory.getvalue())
    if video and outcome.frames:
        _write_video(out / _VIDEO, outcome.frames)
        digests[_VIDEO] = sha256_of_file(out / _VIDEO)
    return digests


def require_video() -> None:
    """Raises JobError where videos cannot be written."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise JobError("videos need the package imageio-ffmpeg: pip install 'convlens[video]'") from error


def _write_video(path: Path, frames: Sequence[Bytes8]) -> None:
    """Frames (H, W, 3) of one size as H.264 in an .mp4, the whole file or none."""
    require_video()
    import imageio.v2 as imageio

    # H.264 subsamples colours by two, so sides must be even.
    height, width = (length // 2 * 2 for length in frames[0].shape[:2])
    with job_dir.wrap_os_errors(path), atomic_write(path) as draft:
        # Without macro_block_size imageio would resize frames to multiples of 16.
        options: dict[str, Any] = {"codec": "libx264", "quality": 8, "macro_block_size": 2}
        writer: Any
        with imageio.get_writer(draft, fps=_FRAMES_PER_SECOND, **options) as writer:
            for frame in frames:
                writer.append_data(np.ascontiguousarray(frame[:height, :width]))


def write_page(out: Path, job: Job, asked: Job, outcome: Outcome, manifest: Mapping[str, Any]) -> None:
    """One page: results, objective, intermediate images, options, provenance. Its images are files beside it.

    ``asked`` is the job before the network chose what it leaves open. Nothing of the page tells the time, so that a
    resumed run's is that of an uninterrupted one.
    """
    description, losses = to_mapping(job), read_losses(out)
    objective = losses.get("objective", [])
    phases = phases_of(description, outcome.facts, losses)
    page = render_job(
        kind=kind_title(job.kind),
        title=subject(description) or ", ".join(outcome.images),
        about=_about(manifest, objective),
        images=result_images(job.kind, list(outcome.images), outcome.facts),
        figures=[
            LinkedImage(address("", f"{stem}.png"), figure_title(stem)) for stem in shown_figures(outcome.figures)
        ],
        facts=fact_rows(description, outcome.facts),
        objective=Objective(
            measure_of(description), objective, phases, list(parts_of(losses).values()), is_loss=is_loss(description)
        ),
        snapshots=_snapshots(out, objective, phases),
        options=option_rows(job, asked, outcome.facts),
        provenance=_provenance(manifest),
        files=JobFiles(
            _VIDEO if _VIDEO in manifest["files"] else "",
            [job_dir.MANIFEST, job_dir.DESCRIPTION, job_dir.LOSSES, *manifest["files"]],
        ),
    )
    job_dir.write(out / job_dir.PAGE, page.encode())


def _about(manifest: Mapping[str, Any], objective: Sequence[float]) -> list[tuple[str, str]]:
    about = [("Model", manifest["model"])] if manifest["model"] else []
    about += [("Steps", str(manifest["steps"])), ("Seed", str(manifest["job"]["seed"]))]
    return [*about, ("Objective", f"{brief(objective[0])} → {brief(objective[-1])}")] if objective else about


def _snapshots(out: Path, objective: Sequence[float], phases: Sequence[Phase]) -> list[LinkedImage]:
    """The images of steps 1, 2, 4, …, with the step, the objective and the phase of each."""
    images = []
    for step, path in job_dir.snapshots(out):
        notes = [f"objective {brief(objective[step - 1])}"] if step <= len(objective) else []
        notes += [phase.title for phase in phases if phase.first <= step <= phase.last]
        images.append(LinkedImage(f"{job_dir.SNAPSHOTS}/{path.name}", f"Step {step}", ", ".join(notes)))
    return images


def _provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {manifest[name]}" for name in ("convlens", *_PACKAGES))
    rows = [
        ("Model", manifest["model"]),
        ("Weights, sha256", manifest["weights_sha256"]),
        ("Seed", manifest["job"]["seed"]),
        ("Versions", versions),
        ("Device", manifest["device"]),
        ("Arithmetic", manifest["precision"]),
        ("Machine", manifest["machine"]),
        ("Threads", manifest["threads"]),
    ]
    hashes = [(f"{name}, sha256", digest) for name, digest in manifest["files"].items()]
    return [(name, str(value)) for name, value in (*rows, *hashes) if value not in (None, "")]


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Written last: it says that everything else is there."""
    job_dir.write(out / job_dir.MANIFEST, json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False).encode())


def versions() -> dict[str, str]:
    """Versions of ConvLens and of the packages that decide the pixels."""
    return {"convlens": convlens.__version__, **{name: metadata.version(name) for name in _PACKAGES}}
