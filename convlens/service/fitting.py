"""What would fit: the next cheaper value of an option with which a request that takes too long does not."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import replace

from convlens import explain
from convlens.service.request import Job

Seconds = Callable[[Job], float]


def said(seconds: float) -> str:
    """Two or three figures: 210 s, 9.6 s, 35 ms."""
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def what_fits(
    jobs: Sequence[Job], seconds_of: Seconds, limit_s: float, *, say: Callable[[float], str] = said
) -> tuple[str, str]:
    """Advice, and the field of the request that it is about: one option that alone makes it fit, else what each takes.

    ``limit_s`` is for all jobs together. Another unit than seconds will do, where ``say`` names it.
    """
    over = sum(map(seconds_of, jobs)) - limit_s
    fits = [(text, job) for job in jobs if (text := _cheaper(job, seconds_of, seconds_of(job) - over))]
    if not fits:
        return _what_each_takes(jobs, seconds_of, say), "methods"
    first, job = fits[0]
    option = f"{job.place}.options.{first.partition('=')[0]}" if len(fits) == 1 and job.place else "methods"
    return f"{', or '.join(f'{job.id} with {text}' for text, job in fits)} would fit", option


def _what_each_takes(jobs: Sequence[Job], seconds_of: Seconds, say: Callable[[float], str]) -> str:
    if len(jobs) > 1:
        each = ", ".join(f"{job.id} {say(seconds_of(job))}" for job in jobs)
        return f"of this {each}; ask for fewer at a time"
    for job in jobs:
        option, values = explain.get(job.method).cheaper(job.options)
        if values:
            return f"not even {job.id} with {option}={values[-1]} would fit"
        return f"no one option makes {job.id} cheaper; ask for larger windows or another method"
    return ""


def _cheaper(job: Job, seconds_of: Seconds, limit_s: float) -> str:
    """``stride=7 or larger``; empty where no value of its own makes the job fit."""
    option, values = explain.get(job.method).cheaper(job.options)

    def fits(value: int) -> bool:
        return seconds_of(replace(job, options={**job.options, option: value})) <= limit_s

    at = bisect.bisect_left(values, True, key=fits)
    if at == len(values):
        return ""
    return f"{option}={values[at]} or {'larger' if values.step > 0 else 'fewer'}"
