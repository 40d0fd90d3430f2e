"""What a synthesis job is: a frozen description, and a run that proceeds step by step and can be saved between steps.

A new kind of job is one file here with a frozen dataclass under ``@job("name")``. The runner, batches, the page and the
checkpoints are the same for all kinds and live in ``convlens.jobs``. The checks of options here raise RequestError with
the option as ``field`` and what it should be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor

from convlens.errors import RequestError
from convlens.models import Classifier
from convlens.types import Bytes8
from convlens.utils.registry import Registry

# Comparisons in the checks are negated (``not value >= least``), so that NaN fails them too.


def require_at_least(least: float, options: object, *names: str) -> None:
    """Options of ``least`` or more."""
    for name in names:
        if not getattr(options, name) >= least:
            raise RequestError(f"{name} should be {least} or more, not {getattr(options, name)}", field=name)


def require_positive(options: object, *names: str) -> None:
    """Options above 0."""
    for name in names:
        if not getattr(options, name) > 0:
            raise RequestError(f"{name} should be above 0, not {getattr(options, name)}", field=name)


def require_between(low: float, high: float, options: object, *names: str) -> None:
    """Options from ``low`` to ``high``; None, which stands for a default, passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise RequestError(f"{name} should be from {low:g} to {high:g}, not {value}", field=name)


def require_choice(known: Sequence[str], options: object, name: str) -> None:
    """An option with one of the ``known`` values."""
    value = getattr(options, name)
    if value not in known:
        raise RequestError(f"no {name} {value!r}; there are: {', '.join(known)}", field=name)


State = dict[str, Any]


"""Tensors, numbers, strings, None, and lists, tuples, dicts of them: what ``torch.load(weights_only=True)`` reads."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: ``images`` (H, W, 3) by file stem, the main one first, and ``figures`` likewise.

    ``facts`` are plain JSON values for the manifest and the page (final predictions, errors, PSNR, ...), ``arrays``
    numbers to be kept as .npy. ``frames`` are images of one size for a video, in order.
    """

    images: Mapping[str, Bytes8]
    figures: Mapping[str, Bytes8] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)
    frames: tuple[Bytes8, ...] = ()


class SynthesisRun(ABC):
    """A job under way: ``done`` of ``total`` steps. ``total`` may shrink when a run is finished early.

    A fresh run of the same job that loads the ``state_dict`` of another continues bit for bit as that one would have
    (CPU). So a run owns its random generators, never uses torch's global one, and saves them in its state.
    """

    total: int
    done: int = 0
    blame: tuple[str, ...] = ()
    """Options of the job to lower where the objective becomes NaN, the most probable first."""

    @abstractmethod
    def step(self) -> Mapping[str, Tensor | float]:
        """Make one step and count it in ``done``. Returns ``objective`` first, then parts that deserve a curve.

        Values may stay 0-dimensional tensors on the device, so that a GPU need not be waited for at every step.
        """

    @abstractmethod
    def state_dict(self) -> State:
        """All that the next steps depend on: detached tensors, which the caller saves before the next step."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``, in a run that has made no step."""

    @abstractmethod
    def snapshot(self) -> Bytes8:
        """The current image (H, W, 3); several side by side where the job makes several."""

    @abstractmethod
    def finish(self) -> Outcome:
        """The results, after the last step."""


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """Base of all jobs. Options are numbers, strings, booleans, None and tuples of those (what YAML holds); images are
    given as paths.

    ``__post_init__`` raises RequestError with ``field`` for values that cannot work, before anything is loaded.
    """

    kind: ClassVar[str] = ""
    needs_model: ClassVar[bool] = True

    model: str = "packaged:efficientnet_lite0"
    seed: int = 0

    def inputs(self) -> tuple[str, ...]:
        """Paths of the files that the job reads: where one has changed, an interrupted run is not resumed."""
        return ()

    def resolved(self, classifier: Classifier | None) -> Self:
        """The same job with the options written out that it leaves to the network; RequestError where it has none."""
        return self

    @abstractmethod
    def begin(self, classifier: Classifier | None) -> SynthesisRun:
        """A run at step 0; ``classifier`` is None only where the job needs no model.

        Raises RequestError for layers and classes that the model does not have and images that cannot be used.
        """

    def require_model(self, classifier: Classifier | None, hint: str = "") -> Classifier:
        """The classifier, or RequestError where a job that needs one was begun without."""
        if classifier is None:
            raise RequestError(f"{self.kind} needs a model{hint}", field="model")
        return classifier


J = TypeVar("J", bound=type[Job])


_JOBS: Registry[type[Job]] = Registry("convlens.synth", noun="job", error=RequestError, field="kind")


def job(kind: str) -> Callable[[J], J]:
    """Register a job class under the name that batches and the command line use."""

    def register(cls: J) -> J:
        cls.kind = kind
        _JOBS.add(kind, cls)
        return cls

    return register


def job_kinds() -> tuple[str, ...]:
    """All kinds of jobs, sorted."""
    return _JOBS.names()


def job_class(kind: str) -> type[Job]:
    """The job class of that kind, or RequestError with the kinds there are."""
    return _JOBS.get(kind)
