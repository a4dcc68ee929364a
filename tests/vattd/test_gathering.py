"""Times to gather pages, and the recesses between them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vattd.gathering import gathering_phase


@given(st.floats(0.0, 1e6), st.floats(0.001, 100.0), st.floats(0.0, 1e5))
def test_times_to_gather_grow_by_one_hold_each_and_recesses_are_as_long(
    since_s: float, hold_s: float, elapsed_s: float
) -> None:
    """Against a plain count; and the next change is never now or before."""
    now_s = since_s + min(elapsed_s, 500 * hold_s)
    begin_s, length = since_s, 1
    while begin_s + 2 * length * hold_s <= now_s:
        begin_s += 2 * length * hold_s
        length += 1
    edges_s = [begin_s + part * length * hold_s for part in range(3)]
    gathers, until_s = gathering_phase(since_s, now_s, hold_s)
    assert until_s > now_s
    if min(abs(now_s - edge_s) for edge_s in edges_s) > 1e-6 * (1 + now_s):
        assert gathers is (now_s < edges_s[1])
        assert until_s == pytest.approx(edges_s[1] if gathers else edges_s[2])
    # Whoever wakes then finds the other phase.
    assert gathering_phase(since_s, until_s, hold_s)[0] is not gathers


@given(st.floats(0.001, 100.0), st.floats(1.0, 1e4))
def test_others_may_pass_in_half_of_any_time_but_for_the_last_turn(hold_s: float, holds: float) -> None:
    now_s, gathered_s, end_s = 0.0, 0.0, holds * hold_s
    while now_s < end_s:
        gathers, until_s = gathering_phase(0.0, now_s, hold_s)
        gathered_s += (min(until_s, end_s) - now_s) if gathers else 0.0
        now_s = until_s
    last_turn_s = hold_s * (math.sqrt(holds) + 1)
    assert gathered_s <= end_s / 2 + last_turn_s


def test_without_a_time_to_hold_nothing_is_gathered() -> None:
    assert gathering_phase(0.0, 5.0, 0.0) == (False, math.inf)
