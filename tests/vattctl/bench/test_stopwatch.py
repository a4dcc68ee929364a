"""Times by round, on a clock of the test's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vattctl.bench.stopwatch import CallTimes, Line, PhaseTimes


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def work(self, took_ns: int) -> None:
        self.now_ns += took_ns


def only(lines: list[Line], phase: str) -> Line:
    [line] = [line for line in lines if line.phase == phase]
    return line


def test_a_phase_that_comes_twice_in_a_round_is_one_time_of_the_round_and_two_calls() -> None:
    clock = Clock()
    times = PhaseTimes(clock)
    for _ in range(3):
        times.run("import", clock.work, 4_000)
        times.run("import", clock.work, 6_000)
        times.end_round(5)
    line = only(times.lines(), "import")
    assert (line.page_count, line.call, line.calls_a_round) == (5, None, 2)
    assert (line.call_us.count, line.round_us.count) == (6, 3)
    assert line.round_us.median_us == 10
    assert line.page_us == 2


def test_calls_are_counted_to_the_phase_that_they_are_made_in_and_the_phase_itself_is_not() -> None:
    clock = Clock()
    times = CallTimes(clock)

    def map_three(watch: Callable[[str, Callable[[int], None]], Callable[[int], None]]) -> None:
        clock.work(50_000)  # the library's own
        for _ in range(3):
            watch("cuMemMap", clock.work)(2_000)
        watch("cuMemSetAccess", clock.work)(30_000)

    times.run("map", map_three, times.watch)
    times.end_round(3)
    maps, access = times.lines()
    assert (maps.call, maps.calls_a_round, maps.page_us) == ("cuMemMap", 3, 2)
    assert (access.call, access.calls_a_round, access.round_us.median_us) == ("cuMemSetAccess", 1, 30)


def test_what_a_failed_round_has_taken_is_not_in_the_figures() -> None:
    clock = Clock()
    times = PhaseTimes(clock)

    def fail() -> None:
        clock.work(1_000)
        raise OSError

    times.run("create", clock.work, 1_000)
    with pytest.raises(OSError):  # noqa: PT011
        times.run("map", fail)
    assert times.lines() == []
    times.forget()
    times.run("map", clock.work, 2_000)
    times.end_round(1)
    assert [line.phase for line in times.lines()] == ["map"]
