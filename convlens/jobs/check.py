"""Jobs begun and not run: whether their images, classes and layers are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from convlens.errors import ConvLensError
from convlens.jobs.batch import BatchResult, Entry
from convlens.jobs.config import identity
from convlens.models import Classifier, load


def check_entries(entries: Sequence[Entry]) -> Iterator[BatchResult]:
    """For each entry, in order, a result without a manifest: its error is why the job could not begin, empty where it
    can.

    Each job is begun on the CPU as ``run_job`` begins it, so its model is loaded, but no step is made and nothing is
    written.
    """
    models = _Models()
    for entry in entries:
        try:
            classifier = models.load(entry.job.model) if entry.job.needs_model else None
            job = entry.job.resolved(classifier)
            identity(job, "")  # reads all files
            job.begin(classifier)
        except ConvLensError as error:
            yield BatchResult(entry.name, error=error.message)
        else:
            yield BatchResult(entry.name)


class _Models:
    """Keeps the last model: jobs of a file mostly share one."""

    def __init__(self) -> None:
        self._last: dict[str, Classifier] = {}

    def load(self, name: str) -> Classifier:
        if name not in self._last:
            self._last.clear()  # first, so that there are never two in memory
            self._last[name] = load(name, device="cpu")
        return self._last[name]
