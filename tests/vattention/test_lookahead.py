"""How far ahead to map: late, and never too late where that can be helped."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vattention.layout import Counts
from vattention.lookahead import MAPPING_SHARE, MAX_STEPS_AHEAD, MIN_STEPS_AHEAD, Pace, spare_steps, steps_ahead

# Pages that fall due at each coming step: none for the tokens there are, then so many for each more.
dues = st.lists(st.integers(0, 40) | st.just(0), min_size=MAX_STEPS_AHEAD, max_size=MAX_STEPS_AHEAD)


def missing(due_pages: list[int], now: int = 0) -> Counts:
    """Pages that rows lack at step `now` for 0, 1, 2, ... more tokens, as far ahead as one looks."""
    coming = due_pages[now : now + MAX_STEPS_AHEAD]
    coming += [0] * (MAX_STEPS_AHEAD - len(coming))
    return np.array([0, *accumulate(coming)])


def pace_of(pages_per_step: float) -> Pace:
    """Steps of a second; so many pages fit into the part of it that mapping has. Powers of two are exact."""
    pace = Pace()
    pace.step_s, pace.page_s = 1.0, MAPPING_SHARE / pages_per_step
    return pace


def test_a_lone_row_that_is_due_later_is_left() -> None:
    for due in range(MIN_STEPS_AHEAD + 1, MAX_STEPS_AHEAD):
        due_pages = [0] * MAX_STEPS_AHEAD
        due_pages[due - 1] = 1
        assert steps_ahead(missing(due_pages), pace_of(1)) == MIN_STEPS_AHEAD


def test_what_two_steps_need_is_always_mapped() -> None:
    assert steps_ahead(missing([0] * MAX_STEPS_AHEAD), pace_of(1 << 20)) == MIN_STEPS_AHEAD


def test_many_rows_that_are_due_together_are_begun_so_early_that_they_fit() -> None:
    """512 pages at 32 a step take 16 steps, beside those that are mapped for in any case."""
    for due in range(1, MAX_STEPS_AHEAD + 1):
        due_pages = [0] * MAX_STEPS_AHEAD
        due_pages[due - 1] = 512
        is_begun = steps_ahead(missing(due_pages), pace_of(32)) >= due
        assert is_begun == (due < 16 + MIN_STEPS_AHEAD), due


@settings(deadline=None)
@given(dues, st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_what_is_left_for_later_fits_into_the_time_until_it_is_due(due_pages: list[int], pages_per_step: int) -> None:
    lacking = missing(due_pages)
    ahead = steps_ahead(lacking, pace_of(pages_per_step))
    assert MIN_STEPS_AHEAD <= ahead <= MAX_STEPS_AHEAD
    for later in range(ahead, MAX_STEPS_AHEAD + 1):
        assert lacking[later] - lacking[ahead] <= (later - ahead) * pages_per_step
    for earlier in range(MIN_STEPS_AHEAD, ahead):
        late = [
            step
            for step in range(earlier, MAX_STEPS_AHEAD + 1)
            if lacking[step] - lacking[earlier] > (step - earlier) * pages_per_step
        ]
        assert late, "fewer steps would have done"


@settings(deadline=None)
@given(dues, st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_no_step_waits_if_the_mapping_rate_can_meet_its_needs_at_all(due_pages: list[int], pages_per_step: int) -> None:
    """Every step, as much of what is asked for as fits into the share of the time is mapped, the nearest first."""
    feasible = [min(due, pages_per_step) for due in due_pages]
    for step in range(MAX_STEPS_AHEAD):  # move what is too much for one step to where it can still be met
        room = (step + 1) * pages_per_step - sum(feasible[:step])
        feasible[step] = min(due_pages[step], room)
    left = list(feasible)
    for now in range(MAX_STEPS_AHEAD):
        wanted = int(missing(left, now)[steps_ahead(missing(left, now), pace_of(pages_per_step))])
        mapped = min(wanted, pages_per_step)
        for step in range(now, MAX_STEPS_AHEAD):
            taken = min(mapped, left[step])
            left[step] -= taken
            mapped -= taken
        assert left[now] == 0, f"step {now} finds {left[now]} of {feasible[now]} pages missing"


@settings(deadline=None)
@given(dues, st.integers(0, MAX_STEPS_AHEAD), st.sampled_from([1, 8, 32]))
def test_until_one_looks_again_there_is_nothing_to_map(due_pages: list[int], idle: int, pages_per_step: int) -> None:
    due_pages = [0] * idle + due_pages[idle:]
    pace = pace_of(pages_per_step)
    spare = spare_steps(missing(due_pages), pace)
    for now in range(1, spare + 1):
        lacking = missing(due_pages, now)
        assert lacking[steps_ahead(lacking, pace)] == 0, f"{now} of {spare} steps later"


def test_who_lacks_nothing_for_long_looks_again_late() -> None:
    pace = pace_of(1)
    assert spare_steps(missing([0] * MAX_STEPS_AHEAD), pace) > MAX_STEPS_AHEAD // 2
    assert spare_steps(missing([1] + [0] * (MAX_STEPS_AHEAD - 1)), pace) == 0


@settings(deadline=None)
@given(dues, st.integers(-6, 6), st.integers(0, 6))
def test_slower_mapping_begins_no_later(due_pages: list[int], fast: int, slower: int) -> None:
    lacking = missing(due_pages)
    assert steps_ahead(lacking, pace_of(2.0**fast)) <= steps_ahead(lacking, pace_of(2.0 ** (fast - slower)))


@settings(deadline=None)
@given(dues, st.integers(-6, 6), st.integers(0, 6))
def test_slower_steps_begin_no_earlier(due_pages: list[int], rate: int, slower: int) -> None:
    quick, slow = pace_of(2.0**rate), pace_of(2.0**rate)
    slow.step_s *= 2.0**slower
    assert steps_ahead(missing(due_pages), slow) <= steps_ahead(missing(due_pages), quick)


@settings(deadline=None)
@given(st.floats(1e-4, 0.2), st.floats(1.0, 1e6))
def test_a_pause_between_requests_hardly_moves_the_pace(step_s: float, pause_s: float) -> None:
    pace, now_s = Pace(), 100.0
    for _ in range(100):
        pace.note_step(now_s)
        now_s += step_s
    assert abs(pace.step_s - step_s) < 0.01 * step_s + 1e-9
    pace.note_step(now_s + pause_s)
    assert pace.step_s <= 2 * step_s
    for _ in range(30):
        now_s += step_s
        pace.note_step(now_s + pause_s)
    assert abs(pace.step_s - step_s) < 0.01 * step_s + 1e-6


@settings(deadline=None)
@given(st.floats(1e-7, 1e-2), st.integers(1, 512))
def test_the_pace_of_mapping_is_counted_by_the_page(page_s: float, page_count: int) -> None:
    pace = Pace()
    for _ in range(100):
        pace.note_mapping(page_count, page_count * page_s)
    assert abs(pace.page_s - page_s) < 0.01 * page_s
