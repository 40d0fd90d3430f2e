"""What every export in these tests would compute anew."""

from __future__ import annotations

import functools

import onnxscript._framework_apis.torch_2_5 as onnxscript_operators
import pytest


@pytest.fixture(scope="session", autouse=True)
def _operators_are_listed_once() -> None:
    """torch's exporter asks onnxscript at every export for the same 500 operators, which parses each one's source:
    0.35 s of the 0.8 s that a small network takes.
    """
    onnxscript_operators.get_torchlib_ops = functools.cache(onnxscript_operators.get_torchlib_ops)
