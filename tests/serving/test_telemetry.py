"""What a batch adds to the metrics, and that TorchServe's own part of the worker takes it as we mean it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import ts
import yaml
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from convlens.engine.batch import MethodRecord, RequestRecord
from convlens.errors import ConvLensError, DeadlineError, ImageTooLargeError, TargetError, error_type
from convlens.serving.telemetry import (
    COUNTERS,
    HISTOGRAMS,
    Sample,
    Telemetry,
    samples,
    unreadable_request,
    with_outcome,
)

DECLARED = Path(__file__).parents[2] / "handlers" / "metrics.yaml"
TORCHSERVES_OWN = Path(ts.__file__).parent / "configs" / "metrics.yaml"
# As TorchServe's frontend (org.pytorch.serve.metrics.Metric) reads a line.
LINE = re.compile(
    r"\[METRICS]\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)(\|#type:([^|,]+))?\|#hostname:([^,]+),([^,]+)(,(.*))?"
)


def row(*methods: MethodRecord, error: ConvLensError | None = None, wait: float | None = None) -> RequestRecord:
    return RequestRecord("r", methods, wait, 0.25, error)


def cache(path: Path) -> MetricsCacheYamlImpl:
    result = MetricsCacheYamlImpl(config_file_path=str(path))
    result.initialize_cache()
    return result


def emitted(
    caplog: pytest.LogCaptureFixture, *reports: RequestRecord, reply_bytes: int = 0
) -> list[tuple[str, str, str]]:
    """Metric, its labels and its value of each line that the server would read."""
    telemetry = Telemetry(cache(DECLARED).cache, "net")
    caplog.set_level(logging.INFO, logger="ts.metrics.caching_metric")
    caplog.clear()
    telemetry.record(reports, reply_bytes=reply_bytes)
    emitted_lines = [record for record in caplog.records if record.name == "ts.metrics.caching_metric"]
    lines = [LINE.fullmatch(record.getMessage()) for record in emitted_lines]
    assert None not in lines, caplog.messages
    return [(line[1], line[4], line[3]) for line in lines if line]


def test_a_prediction_counts_once_and_takes_as_long_as_its_request() -> None:
    assert list(samples([row(wait=0.5)])) == [
        Sample("convlens_seconds", ("predict", "answered"), 0.25),
        Sample("convlens_request_seconds", ("answered",), 0.25),
        Sample("convlens_queue_wait_seconds", (), 0.5),
        Sample("convlens_requests_total", ("predict", "200"), 1),
    ]


def test_a_method_called_twice_by_one_request_counts_once_with_the_work_of_both() -> None:
    twice = row(
        MethodRecord("occlusion", 0.125, 169), MethodRecord("saliency", 0.5, 0), MethodRecord("occlusion", 1.0, 31)
    )
    result = list(samples([twice, row(MethodRecord("occlusion", 2.0, 100))]))
    assert [one for one in result if one.metric == "convlens_seconds"] == [
        Sample("convlens_seconds", ("occlusion", "answered"), 1.125),
        Sample("convlens_seconds", ("saliency", "answered"), 0.5),
        Sample("convlens_seconds", ("occlusion", "answered"), 2.0),
    ]
    assert Sample("convlens_windows_total", ("occlusion",), 300) in result
    assert Sample("convlens_requests_total", ("occlusion", "200"), 2) in result
    assert Sample("convlens_requests_total", ("saliency", "200"), 1) in result
    assert sum(one.metric == "convlens_request_seconds" for one in result) == 2


@pytest.mark.parametrize(
    ("error", "outcome", "labels"),
    [
        (TargetError("no class"), "refused", ("TargetError", "422")),
        (ImageTooLargeError("big"), "refused", ("ImageTooLargeError", "413")),
        (DeadlineError("late"), "failed", ("DeadlineError", "504")),
        (ConvLensError("bug"), "failed", ("ConvLensError", "500")),
    ],
)
def test_an_error_counts_by_type_and_code_and_not_as_answered(
    error: ConvLensError, outcome: str, labels: tuple[str, str]
) -> None:
    result = list(samples([row(error=error)]))
    assert Sample("convlens_errors_total", labels, 1) in result
    assert Sample("convlens_requests_total", ("predict", labels[1]), 1) in result
    assert {one.labels[-1] for one in result if one.metric in HISTOGRAMS} == {outcome}


def test_errors_of_other_modules_count_as_the_kind_of_ours_that_they_are() -> None:
    class Invented(TargetError):
        pass

    assert error_type(Invented("x")) == "TargetError"


def test_evaluations_count_beside_the_methods() -> None:
    result = list(samples([row(MethodRecord("saliency", 0.5, 0), MethodRecord("evaluate", 1.5, 0))]))
    assert Sample("convlens_seconds", ("evaluate", "answered"), 1.5) in result
    assert Sample("convlens_requests_total", ("evaluate", "200"), 1) in result


def test_no_name_from_elsewhere_becomes_a_label() -> None:
    (seconds, *_) = samples([row(MethodRecord('evil",x="', 0.5, 0))])
    assert seconds == Sample("convlens_seconds", ("other", "answered"), 0.5)


def test_what_the_client_got_is_what_counts() -> None:
    answered, late = row(MethodRecord("saliency", 0.5, 0)), DeadlineError("late")
    assert with_outcome(answered, late).error is late
    assert with_outcome(answered, "a reply") == answered
    assert unreadable_request(late, 0.5) == RequestRecord("", (), None, 0.5, late)


def test_the_lines_are_those_that_torchserve_reads(caplog: pytest.LogCaptureFixture) -> None:
    tiny = RequestRecord("\n[METRICS]forged", (MethodRecord("saliency", 1e-7, 0),), 0.0, 3, DeadlineError("[PID]1"))
    assert emitted(caplog, tiny, reply_bytes=12) == [
        ("convlens_seconds", "ModelName:net,Level:Model,method:saliency,outcome:failed", "1e-07"),
        ("convlens_request_seconds", "ModelName:net,Level:Model,outcome:failed", "3"),
        ("convlens_queue_wait_seconds", "ModelName:net,Level:Model", "0.0"),
        ("convlens_requests_total", "ModelName:net,Level:Model,method:saliency,code:504", "1"),
        ("convlens_errors_total", "ModelName:net,Level:Model,type:DeadlineError,code:504", "1"),
        ("convlens_reply_bytes_total", "ModelName:net,Level:Model", "12"),
    ]


def test_a_server_that_declares_no_metric_gets_none_and_the_log_names_them_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    telemetry = Telemetry(cache(TORCHSERVES_OWN).cache, "net")
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "convlens.serving.telemetry"]
    assert all(name in warning for name in (*COUNTERS, *HISTOGRAMS))
    caplog.clear()
    telemetry.record([row()])
    assert [record for record in caplog.records if record.name != "convlens.access"] == []


def test_a_metric_declared_with_its_labels_in_another_order_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TorchServe matches values to labels by their order alone: methods would be shown as codes."""
    text = DECLARED.read_text(encoding="utf-8")
    swapped = tmp_path / "metrics.yaml"
    swapped.write_text(text.replace("*level, method, code]", "*level, code, method]"), encoding="utf-8")
    Telemetry(cache(swapped).cache, "net")
    assert "declare them so: convlens_requests_total;" in caplog.text


def test_torchserves_own_metrics_are_declared_as_it_declares_them() -> None:
    ours, theirs = (
        {
            (kind, one["name"], one["unit"], *one["dimensions"])
            for section in ("ts_metrics", "model_metrics")
            for kind, metrics in yaml.safe_load(path.read_text(encoding="utf-8"))[section].items()
            for one in metrics
        }
        for path in (DECLARED, TORCHSERVES_OWN)
    )
    assert theirs <= ours
    assert {name for _, name, *_ in ours - theirs} == {*COUNTERS, *HISTOGRAMS}
