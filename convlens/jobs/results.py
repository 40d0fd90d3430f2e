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
from convlens.jobs.loss_log import read_losses
from convlens.models import Classifier
from convlens.report.pages import LinkedImage, render_job
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


def write_page(out: Path, job: Job, classifier: Classifier | None, outcome: Outcome, files: Mapping[str, str]) -> None:
    """One page: results, objective, snapshots, description. Its images are files beside it."""
    snapshots = sorted((out / job_dir.SNAPSHOTS).glob("step-*.jpg")) if (out / job_dir.SNAPSHOTS).is_dir() else []
    objective = read_losses(out).get("objective", [])
    page = render_job(
        title=f"{job.kind}: {_subject(outcome)}",
        facts=[
            ("model", classifier.spec.name if classifier else "none"),
            ("weights", classifier.spec.weights_sha256[:12] if classifier else "none"),
            ("steps", str(len(objective))),
            ("seed", str(job.seed)),
        ],
        figures=[LinkedImage(f"{stem}.png", stem) for stem in outcome.figures],
        images=[LinkedImage(f"{stem}.png", stem) for stem in outcome.images],
        snapshots=[
            LinkedImage(f"{job_dir.SNAPSHOTS}/{path.name}", f"step {int(path.stem.removeprefix('step-'))}")
            for path in snapshots
        ],
        objective=objective,
        video=_VIDEO if _VIDEO in files else "",
        results=[(name, _as_text(value)) for name, value in outcome.facts.items()],
        description=(out / job_dir.DESCRIPTION).read_text(encoding="utf-8"),
    )
    job_dir.write(out / job_dir.PAGE, page.encode())


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Written last: it says that everything else is there."""
    job_dir.write(out / job_dir.MANIFEST, json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False).encode())


def versions() -> dict[str, str]:
    """Versions of ConvLens and of the packages that decide the pixels."""
    return {"convlens": convlens.__version__, **{name: metadata.version(name) for name in _PACKAGES}}


def _subject(outcome: Outcome) -> str:
    names = [stem.lstrip("0123456789-") or stem for stem in outcome.images]
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")


def _as_text(value: object) -> str:
    """Numbers and strings as they are, everything deeper as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
