"""Signals that wait until work stands at a good place."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from convlens.utils.interrupts import deferred_interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class CameError(Exception):
    """What the handlers of these tests raise."""


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Handlers that raise; the tests' own come back afterwards."""

    def raise_it(number: int, _: object) -> None:
        raise CameError(number)

    earlier = {number: signal.signal(number, raise_it) for number in SIGNALS}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_is_noted_and_acts_when_it_is_delivered(number: int) -> None:
    with deferred_interrupts() as interruption:
        signal.raise_signal(number)
        assert interruption.received == number
    with pytest.raises(CameError, match=str(int(number))):
        interruption.deliver()


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_acts_at_once(second: int) -> None:
    with pytest.raises(CameError), deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(second)
        pytest.fail("it was deferred as well")


def test_without_a_signal_nothing_is_delivered() -> None:
    with deferred_interrupts() as interruption:
        pass
    interruption.deliver()
    assert interruption.received == 0


def test_afterwards_signals_act_as_before() -> None:
    with deferred_interrupts():
        pass
    with pytest.raises(CameError):
        signal.raise_signal(signal.SIGTERM)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_interrupts() as interruption:
        signal.raise_signal(signal.SIGINT)
    assert interruption.received == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_a_thread_nothing_is_deferred() -> None:
    handlers = [signal.getsignal(number) for number in SIGNALS]

    def inside() -> list[object]:
        with deferred_interrupts():
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == handlers
