"""Frames as a video, where the optional imageio-ffmpeg is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convlens.errors import JobError
from convlens.jobs.files import told
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
