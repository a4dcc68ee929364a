"""Rates: who floods waits, who does not never does, and nobody is remembered for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vattd.rates import MAX_DELAY_S, OTHERS_WITHIN_S, SWEEP_AFTER, Rate, Rates

RATE = Rate(per_s=100, burst=20)
# Who speaks, and how long after the one before.
speech = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 0.02)), min_size=2, max_size=300)


@given(speech=speech)
def test_while_others_speak_nobody_is_granted_more_than_the_rate(speech: list[tuple[str, float]]) -> None:
    rates, now_s = Rates(RATE), 1000.0
    rates.delay_s("other", now_s)
    granted_s: dict[str, list[float]] = {}
    for who, pause_s in speech:
        now_s += pause_s
        rates.delay_s("other", now_s, weight=0.001)  # somebody is always there
        granted_s.setdefault(who, []).append(now_s + rates.delay_s(who, now_s))
    for times_s in granted_s.values():
        for count, time_s in enumerate(times_s, start=1):
            assert count <= RATE.burst + RATE.per_s * (time_s - times_s[0]) + 1.001


@given(pauses_s=st.lists(st.floats(1 / RATE.per_s, 1.0), max_size=200))
def test_who_keeps_to_the_rate_never_waits_whatever_others_do(pauses_s: list[float]) -> None:
    rates, now_s = Rates(RATE), 1000.0
    for pause_s in pauses_s:
        now_s += pause_s
        for _ in range(5):
            rates.delay_s("flood", now_s)
        assert rates.delay_s("calm", now_s) < 1e-6


@given(count=st.integers(1, 1000))
def test_who_is_alone_never_waits_and_owes_nothing_when_another_comes(count: int) -> None:
    rates, now_s = Rates(RATE), 1000.0
    rates.delay_s("gone", now_s)
    now_s += OTHERS_WITHIN_S + 0.01
    for _ in range(count):
        assert rates.delay_s("alone", now_s) == 0
    rates.delay_s("other", now_s)
    assert rates.delay_s("alone", now_s) <= 1.001 / RATE.per_s


def test_nobody_is_put_off_for_ever_whatever_was_said() -> None:
    rates = Rates(RATE)
    rates.delay_s("other", 1000.0)
    assert rates.delay_s("a", 1000.0, weight=1e9) == MAX_DELAY_S
    assert rates.delay_s("a", 1000.0) == MAX_DELAY_S
    assert rates.delay_s("a", 1000.0 + MAX_DELAY_S + 1) == 0


def test_a_heavy_message_counts_as_many() -> None:
    rates = Rates(RATE)
    rates.delay_s("other", 1000.0)
    assert rates.delay_s("a", 1000.0, weight=RATE.burst) < 1e-6
    assert 0.099 < rates.delay_s("a", 1000.0, weight=10) < 0.101


def test_those_that_are_quiet_are_forgotten() -> None:
    rates = Rates(RATE)
    for number in range(10 * SWEEP_AFTER):
        rates.delay_s(number, 1000.0 + number)
    assert len(rates) <= SWEEP_AFTER + 1
