"""Whether two replies to one question say the same, whatever shared a batch with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from live_server import array, assert_same_map


def assert_same_reply(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """The JSON of two replies: to 1e-4, as far as a batch adds in another order."""
    assert found["model"]["weights_sha256"] == wanted["model"]["weights_sha256"]
    assert found["placement"] == wanted["placement"]
    for one, other in zip(found["predictions"], wanted["predictions"], strict=True):
        assert (one["index"], one["label"]) == (other["index"], other["label"])
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-4, abs=1e-6)
    for one, other in zip(found["explanations"], wanted["explanations"], strict=True):
        assert_same_explanation(one, other)


def assert_same_explanation(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key in ("id", "method", "target", "target_label", "options"):
        assert found[key] == wanted[key], key
    if "neighbours" in wanted:
        assert [one["id"] for one in found["neighbours"]] == [one["id"] for one in wanted["neighbours"]]
        distances = [one["distance"] for one in wanted["neighbours"]]
        assert [one["distance"] for one in found["neighbours"]] == pytest.approx(distances, rel=1e-4, abs=1e-5)
        return
    # A logit near 0 is a difference of terms near 10.
    assert found["target_score"] == pytest.approx(wanted["target_score"], rel=1e-4, abs=1e-4)
    assert_same_map(array(found["array"]), array(wanted["array"]))
