"""The numbers of all replicas add up, in Prometheus's text format."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("prometheus_client", reason="the optional package ray[serve]")

from prometheus_client.parser import text_string_to_metric_families

from convlens.rayserve.context import Instrument
from convlens.rayserve.metrics import MetricsStore, Sample


def test_counters_and_histograms_of_two_machines_are_kept_apart_and_added_up() -> None:
    store, pending = MetricsStore(), list[Sample]()
    requests = Instrument("counter", "convlens_requests_total", ["ModelName", "code"], pending)
    seconds = Instrument("histogram", "convlens_seconds", ["ModelName"], pending)
    requests.add_or_update(2, ["net", "200"])
    requests.add_or_update(1, ["net", "422"])
    seconds.add_or_update(0.02, ["net"])

    async def text() -> str:
        await store.add(pending, "one")
        await store.add(pending, "one")
        await store.add(pending[:1], "two")
        return (await store.text()).decode()

    families = {family.name: family for family in text_string_to_metric_families(asyncio.run(text()))}
    counts = {
        (sample.labels["Hostname"], sample.labels["code"]): sample.value
        for sample in families["convlens_requests"].samples
        if sample.name == "convlens_requests_total"
    }
    assert counts == {("one", "200"): 4.0, ("one", "422"): 2.0, ("two", "200"): 2.0}
    values = {(sample.name, sample.labels.get("le")): sample.value for sample in families["convlens_seconds"].samples}
    assert values["convlens_seconds_bucket", "0.01"] == 0
    assert values["convlens_seconds_bucket", "0.025"] == 2
    assert values["convlens_seconds_count", None] == 2
