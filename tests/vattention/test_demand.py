from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vattention.demand import IDLE, WINDOW_S, Demand, Watermarks

takes = st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 10)))


@given(takes, st.integers(0, 1000), st.integers(0, 1000))
def test_the_cache_never_keeps_more_than_two_growth_steps_or_what_is_spare(
    takes: list[tuple[int, float]], step_pages: int, spare_pages: int
) -> None:
    demand, now_s = Demand(spare_pages), 0.0
    demand.step_pages = step_pages
    for pages, pause_s in takes:
        now_s += pause_s
        demand.note(pages, now_s)
        marks = demand.watermarks(now_s)
        assert marks.low_pages <= max(step_pages, spare_pages // 2)
        assert marks.keep_pages <= max(2 * step_pages, spare_pages)


@given(takes)
def test_an_idle_engine_keeps_nothing(takes: list[tuple[int, float]]) -> None:
    demand, now_s = Demand(spare_pages=100), 0.0
    demand.step_pages = 64
    for pages, pause_s in takes:
        now_s += pause_s
        demand.note(pages, now_s)
    assert demand.watermarks(now_s + 2 * WINDOW_S) == IDLE


def test_watermarks_follow_recent_demand() -> None:
    demand = Demand()
    demand.step_pages = 64
    demand.note(8, now_s=0.0)
    assert demand.watermarks(0.0) == Watermarks(8, 16, 16)
    demand.note(2, now_s=WINDOW_S)
    assert demand.watermarks(WINDOW_S) == Watermarks(10, 20, 20)
    assert demand.watermarks(2 * WINDOW_S) == Watermarks(2, 4, 4)
    demand.note(1000, now_s=2 * WINDOW_S)
    assert demand.watermarks(2 * WINDOW_S) == Watermarks(64, 128, 128)


def test_watermarks_that_cross_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="watermarks"):
        Watermarks(2, 1, 3)
    with pytest.raises(ValueError, match="watermarks"):
        Watermarks(1, 2, 1)


def test_pages_that_came_back_are_kept_while_the_demand_lasts() -> None:
    demand = Demand(spare_pages=100)
    demand.step_pages = 10
    demand.note(30, now_s=0.0)
    assert demand.watermarks(0.0) == Watermarks(30, 60, 60)
    demand.note(1000, now_s=0.0)
    assert demand.watermarks(0.0) == Watermarks(50, 100, 100)
    demand.spare_pages = 10
    assert demand.watermarks(0.0) == Watermarks(10, 20, 20)
