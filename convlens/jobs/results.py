"""Frames as a video, where the optional imageio-ffmpeg is installed.

What a finished work leaves, as files.
"""

from __future__ import annotations

import hashlib
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
from convlens.jobs.job_dir import told
from convlens.jobs.loss_log import curve
from convlens.models import Classifier
from convlens.report.pages import LinkedImage, render_job
from convlens.synth.base import Job, Outcome, SynthesisRun
from convlens.types import Bytes8

_RATE = 24


def require_video() -> None:
    """JobError where videos cannot be written."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise JobError("videos need the package imageio-ffmpeg: pip install 'convlens[video]'") from error


def write_video(path: Path, frames: Sequence[Bytes8], *, rate: int = _RATE) -> None:
    """H.264 in an .mp4, the whole file or none; sides are cut to even numbers, which the format wants."""
    require_video()
    import imageio.v2 as imageio

    height, width = (length // 2 * 2 for length in frames[0].shape[:2])
    draft = path.with_name(f".part.{path.name}")
    with told(path):
        try:
            made: Any = imageio.get_writer(draft, fps=rate, codec="libx264", quality=8, macro_block_size=2)
            with made as writer:
                for frame in frames:
                    writer.append_data(np.ascontiguousarray(frame[:height, :width]))
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


_PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def write_outcome(out: Path, outcome: Outcome, *, video: bool) -> dict[str, str]:
    """Pictures and figures as PNG, arrays as .npy; each file's sha256 by name."""
    made = {}
    for stem, picture in (*outcome.images.items(), *outcome.figures.items()):
        made[f"{stem}.png"] = job_dir.write(out / f"{stem}.png", image.encode_png(picture, level=6))
    for stem, values in outcome.arrays.items():
        memory = io.BytesIO()
        np.save(memory, np.asarray(values), allow_pickle=False)
        made[f"{stem}.npy"] = job_dir.write(out / f"{stem}.npy", memory.getvalue())
    if video and outcome.frames:
        path = out / "video.mp4"
        write_video(path, outcome.frames)
        made[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made


def write_page(
    out: Path, job: Job, work: SynthesisRun, classifier: Classifier | None, outcome: Outcome, made: Mapping[str, str]
) -> None:
    """One page: results, curve, snapshots, description. Its pictures are files beside it."""
    said = job_dir.DESCRIPTION
    snapshots = sorted((out / job_dir.SNAPSHOTS).glob("step-*.jpg")) if (out / job_dir.SNAPSHOTS).is_dir() else []
    values = curve(out)
    page = render_job(
        title=f"{job.kind}: {_subject(job, outcome)}",
        facts=[
            ("model", classifier.spec.name if classifier else "none"),
            ("weights", classifier.spec.weights_sha256[:12] if classifier else "none"),
            ("steps", str(len(values.get("objective", [])))),
            ("seed", str(job.seed)),
        ],
        figures=[LinkedImage(f"{stem}.png", stem) for stem in outcome.figures],
        images=[LinkedImage(f"{stem}.png", stem) for stem in outcome.images],
        snapshots=[
            LinkedImage(f"{job_dir.SNAPSHOTS}/{path.name}", f"step {int(path.stem.removeprefix('step-'))}")
            for path in snapshots
        ],
        objective=values.get("objective", []),
        video="video.mp4" if "video.mp4" in made else "",
        results=_plain(outcome.facts),
        description=(out / said).read_text(encoding="utf-8"),
    )
    job_dir.write(out / job_dir.PAGE, page.encode())


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Last: it says that all else is there."""
    job_dir.write(out / job_dir.MANIFEST, json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False).encode())


def versions() -> dict[str, str]:
    return {"convlens": convlens.__version__, **{name: metadata.version(name) for name in _PACKAGES}}


def _subject(job: Job, outcome: Outcome) -> str:
    names = [stem.lstrip("0123456789-") or stem for stem in outcome.images]
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")


def _plain(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers and words as they are, everything deeper as JSON."""
    return [(name, _said(value)) for name, value in facts.items()]


def _said(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
