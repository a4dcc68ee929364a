"""How many idle pages nobody needed for a while, against all that was ever said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vattd.idle_watch import IdleWatch

QUIET_S = 10.0


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 3.0, 9.9, 10.0, 10.1, 25.0, 300.0]), st.integers(0, 9)), min_size=1),
    st.sampled_from([0.0, 0.1, 1e6, 1.7e9]),
)
def test_no_page_is_a_surplus_that_was_not_idle_for_the_whole_quiet_time(
    notes: list[tuple[float, int]], start_s: float
) -> None:
    watch = IdleWatch(QUIET_S)
    now_s = start_s
    said: list[tuple[float, int]] = []  # so many were idle from then on
    for after_s, idle_pages in notes:
        now_s += after_s
        watch.note(idle_pages, now_s)
        said.append((now_s, idle_pages))
        surplus = watch.surplus_pages(now_s)
        assert surplus <= fewest_since(said, now_s - QUIET_S * (1 - 1e-6))
        if now_s > said[0][0] + 2 * QUIET_S:  # and what is idle for two quiet times surely is one
            assert surplus >= fewest_since(said, now_s - 2 * QUIET_S * (1 + 1e-6))


def fewest_since(said: list[tuple[float, int]], since_s: float) -> int:
    before = [pages for time_s, pages in said if time_s <= since_s]
    return min([*(pages for time_s, pages in said if time_s > since_s), *(before[-1:] or [0])])


def test_what_stays_idle_is_a_surplus_after_one_to_two_quiet_times() -> None:
    watch = IdleWatch(QUIET_S)
    watch.note(5, 0.0)
    assert watch.surplus_pages(9.9) == 0
    assert watch.surplus_pages(20.0) == 5
    watch.note(3, 21.0)
    assert watch.surplus_pages(21.0) == 3
    watch.note(9, 22.0)
    assert watch.surplus_pages(39.9) == 3
    assert watch.surplus_pages(40.0) == 9


def test_each_change_is_announced_while_something_is_idle() -> None:
    watch = IdleWatch(QUIET_S)
    assert watch.next_change_s() is None
    watch.note(5, 0.0)
    times_s: list[float] = []
    while watch.surplus_pages(times_s[-1] if times_s else 0.0) < 5:
        next_s = watch.next_change_s()
        assert next_s is not None
        times_s.append(next_s)
    assert times_s == [10.0, 20.0]
    watch.note(0, 20.0)
    assert watch.next_change_s() is None


def test_a_quiet_time_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not a time"):
        IdleWatch(0.0)
