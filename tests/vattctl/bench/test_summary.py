"""Many times in a few numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vattctl.bench.summary import Summary

TIMES = st.lists(st.integers(1, 10**9), min_size=1, max_size=300)


@given(TIMES)
def test_every_figure_lies_between_the_least_and_the_most_and_percentiles_are_times_that_were_measured(
    times_ns: list[int],
) -> None:
    summary = Summary.of_ns(times_ns)
    ranks = [
        summary.least_us,
        summary.p10_us,
        summary.median_us,
        summary.p90_us,
        summary.p99_us,
        summary.most_us,
    ]
    assert ranks == sorted(ranks)
    assert set(ranks) <= {time / 1e3 for time in times_ns}
    assert summary.least_us <= summary.mean_us <= summary.most_us or summary.mean_us == pytest.approx(summary.most_us)
    assert summary.count == len(times_ns)


@given(TIMES)
def test_at_least_a_part_is_as_fast_as_its_percentile_says(times_ns: list[int]) -> None:
    summary = Summary.of_ns(times_ns)
    for part, value in ((0.1, summary.p10_us), (0.5, summary.median_us), (0.9, summary.p90_us), (0.99, summary.p99_us)):
        assert sum(time / 1e3 <= value for time in times_ns) >= part * len(times_ns)
        assert sum(time / 1e3 < value for time in times_ns) <= part * len(times_ns)


def test_a_machine_that_became_slower_half_way_shows_as_drift_and_a_steady_one_does_not() -> None:
    assert Summary.of_ns([1000] * 50 + [2000] * 50).drift == pytest.approx(1.0)
    assert Summary.of_ns([1000, 2000] * 50).drift == 0.0


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Summary.of_ns([])
