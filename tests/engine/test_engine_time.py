"""Limits of time: what cannot end in time is refused before it starts, and what takes too long is stopped."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from engines import engine, paused, picture, replied, request

from convlens.engine.batch import RequestRecord
from convlens.engine.engine import EngineOptions
from convlens.errors import ConvLensError, DeadlineError, ModelError, OverloadError, RequestError
from convlens.protocol.params import parse_params
from convlens.protocol.requests import Request
from convlens.types import Step

pytestmark = pytest.mark.usefixtures("clock")
A_PICTURE = 0.005


def sweep(stride: int = 2, **params: Any) -> dict[str, Any]:
    """Windows of 8 over 24 pixels: 289 by stride 1, 81 by 2, 49 by 3, 25 by 4, 9 by 8."""
    return {"methods": [{"method": "occlusion", "options": {"window": 8, "stride": stride}}], "output": [], **params}


def noisy(samples: int, **params: Any) -> dict[str, Any]:
    return {"methods": [{"method": "smoothgrad", "options": {"samples": samples}}], "output": [], **params}


def sent(ago_s: float, **params: Any) -> Request:
    return Request(picture(1), parse_params(params), time.time() - ago_s)


def refused(answer: object, type_: type[ConvLensError]) -> ConvLensError:
    assert type(answer) is type_, answer
    return answer


# --- what cannot fit at all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit_s", "advice", "field"),
    [
        # 81 windows take 0.41 s, 49 take 0.25 and 25 take 0.13, besides a forward pass.
        (0.6, "occlusion with stride=2 or larger would fit", "methods.0.options.stride"),
        (0.35, "occlusion with stride=3 or larger would fit", "methods.0.options.stride"),
        (0.02, "not even occlusion with stride=8 would fit", "methods"),
    ],
)
def test_a_request_that_takes_longer_than_allowed_is_told_what_would_fit(
    limit_s: float, advice: str, field: str
) -> None:
    module, _ = paused(A_PICTURE)
    error = refused(engine(module, max_seconds=limit_s).run([request(0, **sweep(1))])[0], RequestError)
    assert advice in error.message
    assert re.search(r"would take about 1\.4 s and \d+ ms are allowed", error.message), "of 290 images"
    assert error.field == field
    assert len(module.batches) <= 4, "only what was measured"
    assert set(module.batches) == {1}


@pytest.mark.parametrize("method", ["smoothgrad", "integrated_gradients"])
def test_what_is_said_to_fit_is_the_most_that_fits(method: str) -> None:
    live = engine(paused(A_PICTURE)[0], max_seconds=0.3)
    option = "samples" if method == "smoothgrad" else "steps"

    def answer(count: int) -> Any:
        return live.run([request(0, output=[], methods=[{"method": method, "options": {option: count}}])])[0]

    (most,) = re.findall(rf"{option}=(\d+) or fewer", refused(answer(500), RequestError).message)
    assert int(most) == 19, "of 15 ms each, and one image"
    refused(answer(int(most) + 1), RequestError)
    assert not isinstance(answer(int(most)), RequestError)


def test_methods_that_fit_only_one_at_a_time_are_named_with_what_each_takes() -> None:
    live = engine(paused(A_PICTURE)[0], max_seconds=0.5)
    twice = [{"method": "occlusion", "id": name, "options": {"window": 8, "stride": 8}} for name in ("one", "other")]
    many = [*twice, *({"method": "saliency", "id": f"s{n}", "target": n} for n in range(6))]
    replied(live.run([request(0, output=[], methods=many)])[0])
    slow = engine(paused(0.05)[0], max_seconds=0.5)
    error = refused(slow.run([request(0, output=[], methods=twice)])[0], RequestError)
    assert re.search(r"of this one 450 ms, other 450 ms; ask for fewer at a time", error.message)


def test_options_that_allow_nothing_are_refused_at_once() -> None:
    with pytest.raises(ModelError, match="max_seconds=0 allows nothing"):
        EngineOptions(max_seconds=0)
    with pytest.raises(ModelError, match="no precision 'int8'; there are: float32, tf32, half"):
        EngineOptions(precision="int8")  # type: ignore[arg-type]


# --- what does not fit together ---------------------------------------------------------------------------------------


def test_of_sweeps_that_do_not_fit_together_the_first_is_answered_and_predictions_always_are() -> None:
    module, _ = paused(A_PICTURE)
    live = engine(module, max_seconds=0.8)
    live.calibrate()
    requests = [request(n, **sweep(2)) for n in range(3)] + [request(3), request(4, methods=["saliency"], output=[])]
    started = time.perf_counter()
    answers = live.run(requests)
    assert time.perf_counter() - started <= (5 + 82 + 3) * A_PICTURE
    assert [type(answer) is OverloadError for answer in answers] == [False, True, True, False, False]
    assert "and 800 ms are allowed; try again" in answers[1].message
    for n in (0, 3, 4):
        replied(answers[n])


def test_a_sweep_does_not_make_a_prediction_in_its_batch_miss_its_deadline() -> None:
    live = engine(paused(A_PICTURE)[0])
    live.calibrate()
    answers = live.run([request(0, **sweep(2)), request(1, deadline_ms=300)])
    assert "no deadline would be kept" in refused(answers[0], OverloadError).message
    replied(answers[1])
    replied(live.run([request(0, **sweep(2)), request(1, deadline_ms=2000)])[0])


def test_a_prediction_with_a_tight_deadline_costs_no_other_prediction_its_answer() -> None:
    live = engine(paused(A_PICTURE)[0])
    for answer in live.run([request(0, deadline_ms=100), *(request(n) for n in range(40))])[1:]:
        replied(answer)


# --- what takes longer than expected ----------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [sweep(1), noisy(60)], ids=["windows", "samples"])
def test_work_that_overruns_is_stopped_and_costs_its_neighbours_nothing(params: dict[str, Any]) -> None:
    module, pause = paused(0.0001)
    live = engine(module, max_seconds=0.5)
    live.calibrate()
    pause.seconds = A_PICTURE
    started = time.perf_counter()
    answers = live.run([request(0, **params), request(1), request(2, methods=["saliency"])])
    took = time.perf_counter() - started
    error = refused(answers[0], OverloadError)
    assert re.search(r"\d+ ms of the 500 ms that a batch may take are spent; try again", error.message)
    assert 0.55 < took < 0.55 + 33 * 3 * A_PICTURE, "the batch of windows or samples that was under way ends"
    assert_predictions(answers[1:], engine().run([request(1), request(2)]))


def assert_predictions(answers: list[Any], expected: list[Any]) -> None:
    for one, other in zip(answers, expected, strict=True):
        logits, expected_logits = ([p.logit for p in replied(answer).predictions] for answer in (one, other))
        assert logits == pytest.approx(expected_logits, rel=1e-5)


def test_what_was_stopped_is_remembered_and_refused_the_next_times() -> None:
    module, pause = paused(0.0001)
    live = engine(module, max_seconds=0.6)
    live.calibrate()
    pause.seconds = A_PICTURE
    answers = [live.run([request(0, **sweep(1))])[0] for _ in range(2)]
    assert live.estimate(parse_params(sweep(1))) == pytest.approx(290 * A_PICTURE, rel=0.01), "of all its windows"
    answers += live.run([request(0, **sweep(1))])
    assert [type(answer) for answer in answers] == [OverloadError, OverloadError, RequestError]


def test_a_job_for_which_no_time_is_left_is_not_begun() -> None:
    module, pause = paused(0.0001)
    live = engine(module, max_seconds=0.6)
    live.calibrate()
    pause.seconds = A_PICTURE  # each of these takes 0.41 s and was expected to take a fiftieth
    before = len(module.batches)
    steps: list[Step] = []
    answers = live.run([request(n, **sweep(2)) for n in range(3)], on_step=steps.append)
    replied(answers[0])
    refused(answers[1], OverloadError)
    assert "try again" in refused(answers[2], OverloadError).message
    assert module.batches[before] == 3
    assert sum(step.stage == "occlusion" and not step.total for step in steps) == 2, "the third was never begun"


def test_a_deadline_is_kept_in_the_middle_of_a_sweep() -> None:
    module, pause = paused(0.0001)
    live = engine(module)
    live.calibrate()
    pause.seconds = A_PICTURE
    started = time.perf_counter()
    answers = live.run([request(0, **sweep(1, deadline_ms=400)), request(1)])
    assert 0.4 < time.perf_counter() - started < 0.4 + 33 * A_PICTURE
    assert "deadline_ms is 400" in refused(answers[0], DeadlineError).message
    replied(answers[1])


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_request_whose_deadline_has_passed_is_not_worked_on() -> None:
    module, _ = paused(0.0)
    answers = engine(module).run([sent(0.5, deadline_ms=400), sent(0.5, deadline_ms=60_000)])
    error = refused(answers[0], DeadlineError)
    assert re.search(r"deadline_ms is 400: 500 ms have passed since it was sent", error.message)
    assert error.field == "deadline_ms"
    replied(answers[1])
    assert sum(module.batches) - module.batches.count(1) == 0, "one row, and what was measured"


def test_a_deadline_that_has_passed_says_so_even_where_it_could_never_be_kept() -> None:
    refused(engine(paused(A_PICTURE)[0]).run([sent(2.0, **sweep(1, deadline_ms=600))])[0], DeadlineError)


def test_a_request_that_could_never_keep_its_deadline_is_told_what_would() -> None:
    error = refused(engine(paused(A_PICTURE)[0]).run([request(0, **sweep(1, deadline_ms=600))])[0], RequestError)
    assert "deadline_ms allows 600 ms; occlusion with stride=2 or larger would fit" in error.message
    assert error.field == "deadline_ms"


def test_a_request_that_has_waited_too_long_to_keep_its_deadline_is_told_so() -> None:
    live = engine(paused(A_PICTURE)[0])
    live.calibrate()
    replied(live.run([sent(0.0, **sweep(2, deadline_ms=800))])[0])
    error = refused(live.run([sent(0.7, **sweep(2, deadline_ms=800))])[0], DeadlineError)
    assert re.search(r"700 ms have passed since it was sent and the work takes about 410 more", error.message)


def test_without_a_time_of_sending_the_deadline_counts_from_the_beginning_of_the_run() -> None:
    replied(engine(paused(0.0)[0]).run([request(0, deadline_ms=500)])[0])


@pytest.mark.parametrize(("ago_s", "offset"), [(7200, "7200 s ago"), (-60, "60 s ahead"), (1.7e9, "s ago")])
def test_an_impossible_time_of_sending_is_ignored_with_a_warning(ago_s: float, offset: str) -> None:
    reply = replied(engine(paused(0.0)[0]).run([sent(ago_s, deadline_ms=2000)])[0])
    (warning,) = reply.warnings
    assert offset in warning
    assert "was ignored" in warning


def test_a_clock_that_is_a_little_ahead_is_no_matter() -> None:
    seen: list[RequestRecord] = []
    (answer,) = engine(paused(0.0)[0]).run([sent(-2.0, deadline_ms=1000)], on_row=seen.append)
    assert replied(answer).warnings == ()
    assert seen[0].queue_wait_s == 0.0, "it cannot have waited less than nothing"


# --- what is reported -------------------------------------------------------------------------------------------------


def test_each_request_is_reported_once_with_its_methods_its_windows_and_its_error() -> None:
    seen: list[RequestRecord] = []
    requests = [
        request(0, request_id="plain"),
        request(1, request_id="swept", **sweep(2)),
        sent(0.2, request_id="late", deadline_ms=100),
        sent(0.3, request_id="both", methods=["saliency", {"method": "smoothgrad", "options": {"samples": 6}}]),
        request(2, request_id="wrong", methods=["salience"]),
    ]
    answers = engine(paused(0.001)[0]).run(requests, on_row=seen.append)
    assert [row.request_id for row in seen] == ["plain", "swept", "late", "both", "wrong"]
    assert [row.error for row in seen] == [answer if isinstance(answer, ConvLensError) else None for answer in answers]
    assert [[(one.method, one.windows) for one in row.methods] for row in seen] == [
        [],
        [("occlusion", 81)],
        [],
        [("saliency", 0), ("smoothgrad", 0)],
        [],
    ]
    assert [row.queue_wait_s is None for row in seen] == [True, True, False, False, True]
    assert seen[3].queue_wait_s == pytest.approx(0.3)
    assert seen[1].methods[0].seconds == pytest.approx(0.082), "the windows and the whole image"
    assert all(row.seconds > 0.1 for row in seen), "nothing is answered before the whole batch is"


def test_a_sweep_that_was_stopped_is_reported_with_the_windows_it_had_done() -> None:
    module, pause = paused(0.0001)
    live = engine(module, max_seconds=0.4)
    live.calibrate()
    pause.seconds = A_PICTURE
    seen: list[RequestRecord] = []
    live.run([request(0, **sweep(1))], on_row=seen.append)
    (one,) = seen[0].methods
    assert type(seen[0].error) is OverloadError
    assert 80 <= one.windows <= 96, "batches of 8, by 0.04 s each: the first after 0.44 s was the last"
    assert one.seconds > 0.4 - 0.05


# --- reading counts ---------------------------------------------------------------------------------------------------


def test_the_time_that_reading_took_counts_against_the_batch() -> None:
    live = engine(paused(A_PICTURE)[0], max_seconds=20.0)
    assert replied(live.run([request(0, **sweep(2))], started=time.perf_counter())[0])
    error = refused(live.run([request(0, **sweep(2))], started=time.perf_counter() - 30)[0], OverloadError)
    assert "of the 20 s that a batch may take are spent" in error.message


def test_the_time_that_reading_took_counts_for_which_rows_are_let_in() -> None:
    live = engine(paused(A_PICTURE)[0], max_seconds=20.0)
    answers = live.run([request(0), request(1, **sweep(2))], started=time.perf_counter() - 19.99)
    assert replied(answers[0])
    assert "together with the requests before it" in refused(answers[1], OverloadError).message


def test_a_deadline_counts_from_when_reading_began() -> None:
    params = parse_params({"deadline_ms": 5000})
    live = engine(paused(A_PICTURE)[0])
    early = Request(picture(1), params, arrived=time.perf_counter() - 60)
    assert replied(live.run([Request(picture(1), params, arrived=time.perf_counter())])[0])
    assert "60" in refused(live.run([early])[0], DeadlineError).message
