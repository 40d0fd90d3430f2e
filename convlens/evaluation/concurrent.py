"""Several images evaluated at once on a CPU, each with a network of its own and its share of the cores."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue

import torch

from convlens.errors import RequestError
from convlens.evaluation.picture import EvaluationPlan, Picture, PictureEvaluator, Record
from convlens.explain import GraphModel
from convlens.explain.forward import OnStep
from convlens.instrument import copy_of
from convlens.models import Classifier
from convlens.runtime.graph_set import GraphSet
from convlens.types import Step, no_op
from convlens.utils.concurrency import ordered_map

# Two images at a time on two cores took .88 of the time of one after the other: threads that share a pass wait for
# each other at its every step.
_MOST = 8
# Of a network's weights each worker holds a copy, and two more where sanity checks randomise them.
_WEIGHTS_BYTES = 4 * 2**30


def require_workers(model: Classifier | GraphModel, workers: int | None) -> None:
    """RequestError for no workers at all, and for several on a GPU."""
    if workers is not None and workers < 1:
        raise RequestError(f"workers={workers}; use 1 or more", field="workers")
    if workers is not None and workers > 1 and model.device.type != "cpu":
        raise RequestError(f"workers={workers}, but a GPU takes one image at a time; leave it out", field="workers")


def default_workers(model: Classifier | GraphModel, plan: EvaluationPlan, pictures: int) -> int:
    """As many as there are cores and images, up to 8; 1 on a GPU, and fewer where the copies would be large."""
    if model.device.type != "cpu":
        return 1
    copies = 1 if not plan.stages else 3
    size = sum(weight.nbytes for weight in model.module.parameters()) if isinstance(model, Classifier) else 0
    return max(1, min(torch.get_num_threads(), pictures, _MOST, _WEIGHTS_BYTES // max(1, size * copies)))


class ConcurrentEvaluators:
    """Evaluates images by ``workers`` threads, as ``convlens.evaluation.evaluate.EvaluationCluster`` says.

    The cores are divided between the workers; a picture's seconds are those that it takes with its share of them.
    ``on_step`` is called by the workers, one at a time.
    """

    def __init__(self, model: Classifier | GraphModel, workers: int, *, on_step: OnStep = no_op) -> None:
        self._model, self._workers, self._on_step = model, workers, on_step
        self._stopped, self._one_at_a_time = threading.Event(), threading.Lock()

    def records(self, pictures: Iterable[Picture], plan: EvaluationPlan) -> Generator[Record]:
        """A record for each image, in their order. Closed early, each worker ends with the method it is at."""
        idle: SimpleQueue[PictureEvaluator] = SimpleQueue()
        for model in self._models():
            idle.put(PictureEvaluator(model, plan, on_step=self._step))
        with _cores_divided(self._workers) as set_threads:

            def record(picture: Picture) -> Record:
                set_threads()
                evaluator = idle.get()
                try:
                    return evaluator.record(picture)
                finally:
                    idle.put(evaluator)

            self._stopped.clear()
            yield from ordered_map(
                record, pictures, workers=self._workers, ahead=2 * self._workers, stopped=self._stopped
            )

    def _models(self) -> Iterator[Classifier | GraphModel]:
        # Hooks stand in a network's layers while a method runs: no two may share one.
        for number in range(self._workers):
            yield _alone(self._model, number)

    def _step(self, step: Step) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        with self._one_at_a_time:
            self._on_step(step)


class _StoppedError(Exception):
    """Ends a worker whose record nobody waits for."""


def _alone(model: Classifier | GraphModel, number: int) -> Classifier | GraphModel:
    """The model for the worker of that number: a network of its own, and graphs whose runs take one thread."""
    graphs = model.graphs and _graphs_of_worker(model.graphs, number)
    if isinstance(model, GraphModel):
        assert graphs is not None, "a model of graphs has some"
        main = graphs.runtimes[model.graphs.runtimes.index(model.main)]
        return replace(model, graphs=graphs, main=main)
    return replace(model, module=copy_of(model.module) if number else model.module, graphs=graphs)


def _graphs_of_worker(graphs: GraphSet, number: int) -> GraphSet:
    """The same at each call: what their sweeps have learnt of their speed stays."""
    kept = _KEPT.setdefault(graphs, {})
    if number not in kept:
        kept[number] = GraphSet(tuple(runtime.on_one_core() for runtime in graphs.runtimes))
    return kept[number]


# By what lives as long as the model does; a worker's graphs do not hold it.
_KEPT: weakref.WeakKeyDictionary[GraphSet, dict[int, GraphSet]] = weakref.WeakKeyDictionary()


@contextmanager
def _cores_divided(workers: int) -> Iterator[Callable[[], None]]:
    """Gives what a worker calls to have its share of torch's threads; at the end new threads have them all again."""
    threads = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(max(1, threads // workers))
    finally:
        torch.set_num_threads(threads)
