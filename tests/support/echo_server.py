"""Archives of a handler of a few lines, where only the server and what stands before it are under test."""

from __future__ import annotations

from pathlib import Path

from convlens.torchserve import archive
from convlens.torchserve.archive_config import ArchiveOptions

# Predicts the same of everything, and says what reached it. A body that is a number is so many seconds of work.
_HANDLER = """
import json, time

class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [self.answer(row, context.get_all_request_header(at)) for at, row in enumerate(data)]

    def answer(self, row, headers):
        body = row.get("data") or row.get("body") or b""
        body = bytes(body) if isinstance(body, (bytes, bytearray)) else json.dumps(body).encode()
        if len(body) < 4:
            time.sleep(float(body))
        predictions = [{"index": 0, "label": "grey", "probability": 1.0}]
        return json.dumps({"predictions": predictions, "bytes": len(body), "headers": dict(headers)})
"""


def echo_archives(folder: Path) -> dict[str, Path]:
    """Two entries, "convlens" and "other"."""
    handler = folder / "echoes.py"
    handler.write_text(_HANDLER)
    options = ArchiveOptions(handler=handler, batch_size=1, max_batch_delay_ms=1)
    return {
        name: archive.build(name=name, model_dir=None, store=folder / "store", options=options)
        for name in ("convlens", "other")
    }
