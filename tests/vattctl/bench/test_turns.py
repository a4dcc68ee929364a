"""How long, and how it is broken off."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from vattctl.bench.turns import Interrupted, interruptible, turns


def test_turns_end_with_the_time_but_not_before_the_least() -> None:
    clock = iter(range(1000))
    assert len(list(turns(10.0, 3, lambda done: None, lambda: next(clock)))) == 9
    clock = iter(range(0, 10_000, 100))
    assert len(list(turns(10.0, 3, lambda done: None, lambda: next(clock)))) == 3


def test_who_watches_is_told_how_much_is_done() -> None:
    clock = iter(range(1000))
    told: list[float] = []
    list(turns(4.0, 6, told.append, lambda: next(clock)))
    assert told == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_nothing_off_until_it_is_asked_for_and_a_second_one_is_as_ever(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible() as check:
        check()
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) == before
        with pytest.raises(Interrupted):
            check()
    assert signal.getsignal(number) == before


def test_in_another_thread_signals_are_not_touched() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with interruptible() as check:
            check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
