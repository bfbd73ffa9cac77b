"""Starting Ray is interrupted whenever Ctrl-C comes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from ray_jobs.cluster import no_interrupt_lost


@pytest.fixture(autouse=True)
def handler():
    """As in a command: Ctrl-C raises, and afterwards the handler is as it was."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class HookOfAFork:
    """Interrupted where Python prints an exception and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def run(interrupting: Callable[[], object], reached: list[str]) -> None:
    with no_interrupt_lost():
        interrupting()
        reached.append("the end")


def test_an_interrupt_that_was_swallowed_is_raised_in_the_end_and_printed_nowhere(capfd: pytest.CaptureFixture[str]):
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(HookOfAFork, reached)
    assert reached == ["the end"]
    assert "KeyboardInterrupt" not in capfd.readouterr().err


def test_an_interrupt_that_gets_through_is_raised_at_once():
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(lambda: signal.raise_signal(signal.SIGINT), reached)
    assert reached == []


def test_it_counts_more_than_what_went_wrong_because_of_it():
    def fail() -> None:
        with no_interrupt_lost():
            HookOfAFork()
            raise OSError("Ray ended while it started")

    with pytest.raises(KeyboardInterrupt):
        fail()


def test_without_an_interrupt_nothing_happens():
    reached: list[str] = []
    run(lambda: None, reached)
    assert reached == ["the end"]


def test_other_threads_have_no_signals():
    found = []

    def look() -> None:
        with no_interrupt_lost():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(20)
    assert found == [signal.default_int_handler]
