"""The source files that one REST explanation passes through in a worker, listed and counted.

    python scripts/trace_request.py --model packaged:efficientnet_lite0

The real handler answers in this process, with TorchServe's own Context. A file counts when a function defined in it is
called during the request; one request of the same kind goes before, so that imports and set-up are not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from convlens import image
from convlens.models import DEFAULT, load, pack
from handlers.convlens_handler import ConvLensHandler

ROOT = Path(__file__).resolve().parents[1]
WORKER_FOLDERS = ("convlens", "handlers")
METHODS = ("saliency", "occlusion")


@contextmanager
def traced_files() -> Iterator[set[str]]:
    """Collects the paths, relative to the repository, of files whose functions are called inside the ``with``."""
    files: set[str] = set()
    folders = tuple(f"{ROOT / folder}/" for folder in WORKER_FOLDERS)

    def profile(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(folders):
            files.add(str(Path(path).relative_to(ROOT)))

    # sys.setprofile and not sys.settrace: calls are all that is needed, and lines would slow the request twentyfold.
    # The threading twin reaches the threads that sweeps start.
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def initialised_handler(model: str, folder: Path) -> ConvLensHandler:
    """The handler as a worker has it once its archive is loaded."""
    pack(load(model, device="cpu"), folder / "model")
    handler = ConvLensHandler()
    handler.initialize(_context(folder))
    return handler


def explain(handler: ConvLensHandler, method: str) -> str | bytes:
    """One explanation over REST: ``/explanations/convlens/1.0/METHOD`` with a PNG as the body."""
    context = _context(Path())
    context.request_processor = [RequestProcessor({"explain": "True", "url_path": method})]
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    (body,) = handler.handle([{"body": image.encode_png(pixels_HWC)}], context)
    assert context.get_response_status(0)[0] in (None, 200), body
    assert [one["method"] for one in json.loads(body)["explanations"]] == [method]
    return body


def _context(folder: Path) -> Any:
    manifest = {"model": {"modelName": "convlens", "modelVersion": "1.0"}}
    # A long time for answers, since traced sweeps are slow and what cannot end in time is refused.
    config = {"responseTimeout": 3600, "convlens": {}}
    context = Context("convlens", str(folder), manifest, 1, None, "0.12", model_yaml_config=config)
    context.metrics = MetricsCacheYamlImpl(config_file_path=str(ROOT / "handlers" / "metrics.yaml"))
    context.metrics.initialize_cache()
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        handler = initialised_handler(options.model, Path(folder))
        for method in METHODS:
            explain(handler, method)
            with traced_files() as files:
                explain(handler, method)
            print(f"{method}: {len(files)} files", *sorted(files), sep="\n  ")  # noqa: T201 - it is a command


if __name__ == "__main__":
    main()
